"""delta_mixer: everything between the two projections of a gated-delta layer in one primitive, for decoding.

Of a batch that goes in step; ``delta_mixer_rows`` is of sequences that have states of their own.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.conv1d import conv1d_reference
from mlx_delta.ops.gated_delta import gated_delta_reference
from mlx_delta.ops.gated_norm import gated_norm_reference

Mixed = tuple[mx.array, mx.array, mx.array]


def delta_mixer(
    projection: mx.array,
    conv_weight: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    conv_state: mx.array | None,
    delta_state: mx.array | None,
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-6,
    mask: mx.array | None = None,
    pending: mx.array | None = None,
    keep: bool = True,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """conv1d, gated_delta and gated_norm, without rounding in between.

    ::

        [q | k | v | z | b | a] = projection
        q, k, v = conv1d([q | k | v])                           see ``conv1d``
        y = gated_delta(q, k, v, a, b)                          see ``gated_delta``
        y = norm * y * rsqrt(mean(y^2) + eps) * silu(z)         per value head

    Args:
        projection: [B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv], float32, float16 or bfloat16; T is small (decoding, speculation).
        conv_weight: [C, 4], or as checkpoints have it, see ``conv1d``; C = 2 Hk Dk + Hv Dv.
        A_log, dt_bias: [Hv].
        norm: [Dv], as it multiplies (this norm is never zero-centred).
        conv_state: [B, 3, C] of projection's dtype, or None: zeros.
        delta_state: float32 [B, Hv, Dv, Dk], or None: zeros.
        key_heads, key_dim: Hk, Dk.
        mask: bool [B, T]; a token whose mask is false is not there.
        pending: [B, P, ..], projections of tokens before these whose states were not kept: the states go through them
            first.
        keep: whether the states returned are those after the tokens; else, where they may be taken back, those before
            them, after ``pending``. The projections of those that count are ``pending`` of the next call.

    Returns: (y [B, T, Hv Dv], conv state, delta state). States are updated in place where nobody else holds them, and
        have the bits of one token a call, whatever came at once. Raises: ValueError naming the argument.
    Source: Hugging Face ``Qwen3_5GatedDeltaNet`` (modeling_qwen3_5.py).
    """
    return _core.delta_mixer(
        projection,
        conv_weight,
        A_log,
        dt_bias,
        norm,
        conv_state,
        delta_state,
        key_heads=key_heads,
        key_dim=key_dim,
        eps=eps,
        mask=mask,
        pending=pending,
        keep=keep,
        stream=stream,
    )


def delta_mixer_reference(
    projection: mx.array,
    conv_weight: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    conv_state: mx.array | None,
    delta_state: mx.array | None,
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-6,
    mask: mx.array | None = None,
    pending: mx.array | None = None,
    keep: bool = True,
) -> tuple[mx.array, mx.array, mx.array]:
    """``delta_mixer`` in float32: the references of its parts, one after the other."""
    if pending is not None or not keep:

        def run(x: mx.array, conv: mx.array | None, delta: mx.array | None, mask: mx.array | None) -> Mixed:
            small = conv_weight, A_log, dt_bias, norm
            return delta_mixer_reference(
                x, *small, conv, delta, key_heads=key_heads, key_dim=key_dim, eps=eps, mask=mask
            )

        if pending is not None:
            _, conv_state, delta_state = run(pending, conv_state, delta_state, None)
        y, conv, delta = run(projection, conv_state, delta_state, mask)
        if keep:
            return y, conv, delta
        return (
            y,
            mx.zeros_like(conv) if conv_state is None else conv_state,
            mx.zeros_like(delta) if delta_state is None else delta_state,
        )
    B, T, _ = projection.shape
    Hv, Dv = A_log.shape[0], norm.shape[0]
    keys = key_heads * key_dim
    conv_dim = 2 * keys + Hv * Dv
    qkv, z, b, a = mx.split(
        projection.astype(mx.float32), [conv_dim, conv_dim + Hv * Dv, conv_dim + Hv * Dv + Hv], axis=-1
    )
    qkv, new_conv = conv1d_reference(qkv, conv_weight, conv_state, mask=mask)
    q, k, v = mx.split(qkv, [keys, 2 * keys], axis=-1)
    y, new_delta = gated_delta_reference(
        q.reshape(B, T, key_heads, key_dim),
        k.reshape(B, T, key_heads, key_dim),
        v.reshape(B, T, Hv, Dv),
        a,
        b,
        A_log,
        dt_bias,
        delta_state,
        mask=mask,
    )
    y = gated_norm_reference(y, z.reshape(B, T, Hv, Dv), norm, eps=eps)
    return y.reshape(B, T, Hv * Dv), new_conv, new_delta
