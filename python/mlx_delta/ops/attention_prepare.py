"""attention_prepare: query/key RMSNorm, partial rotary embedding (M-RoPE) and the append to the KV cache."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.kv_rows import quantize_kv


def attention_prepare(
    projection: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    offset: int,
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    eps: float = 1e-6,
    positions: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """From the projection of an attention layer to its query, with keys and values in the cache.

    ::

        [(q | gate) per query head | k | v] = projection
        q = rope(q * rsqrt(mean(q^2) + eps) * q_norm)      per head; k likewise with k_norm
        keys[:, :, offset : offset + T] = k;  values likewise

    ``rope`` turns the pairs (i, i + rope_dim / 2) of a head's first rope_dim values by position * theta^(-2i/rope_dim).
    The position is that of T, except for M-RoPE's interleaved frequencies: i follows H where i % 3 == 1 and
    i // 3 < rope_sections[1], and W where i % 3 == 2 and i // 3 < rope_sections[2].

    Args:
        projection: [B, T, (2 Hq + 2 Hkv) D], float32, float16 or bfloat16. The gate is left for ``attention``.
        q_norm, k_norm: [D], as they multiply (1 + w for zero-centred checkpoints).
        keys, values: cache [B, Hkv, S, D] of projection's dtype, rows before ``offset`` valid; or in 8 bits, uint8
            [B, Hkv, S, kv_row_bytes(D)]: what that dtype would hold, quantized as ``quantize_kv`` does it.
        positions: int [B, T], or [3, B, T] (T, H, W); None: offset + t.

    Returns: (q [B, Hq, T, D], keys, values). The cache is updated in place where nobody else holds it, else copied.
    Raises: ValueError naming the argument.
    Source: Hugging Face ``Qwen3_5Attention`` and ``apply_interleaved_mrope`` (modeling_qwen3_5.py).
    """
    return _core.attention_prepare(
        projection,
        q_norm,
        k_norm,
        keys,
        values,
        offset=offset,
        rope_theta=rope_theta,
        rope_dim=rope_dim,
        rope_sections=rope_sections,
        eps=eps,
        positions=positions,
        stream=stream,
    )


def attention_prepare_reference(
    projection: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    offset: int,
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    eps: float = 1e-6,
    positions: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """``attention_prepare`` in float32; in 8 bits of what is rounded to projection's dtype."""
    B, T, width = projection.shape
    Hkv, D = keys.shape[1], q_norm.shape[0]
    Hq = width // (2 * D) - Hkv
    x = projection.astype(mx.float32)
    q = x[..., : 2 * Hq * D].reshape(B, T, Hq, 2, D)[:, :, :, 0]
    k, v = mx.split(x[..., 2 * Hq * D :].reshape(B, T, 2 * Hkv, D), 2, axis=2)

    if positions is None:
        positions = mx.broadcast_to(mx.arange(offset, offset + T), (B, T))
    if positions.ndim == 2:
        positions = mx.broadcast_to(positions, (3, B, T))
    half = rope_dim // 2
    axes = [i % 3 if i % 3 and i // 3 < rope_sections[i % 3] else 0 for i in range(half)]
    frequencies = mx.array([rope_theta ** (-2 * i / rope_dim) for i in range(half)])
    angle = positions.astype(mx.float32).transpose(1, 2, 0)[..., mx.array(axes)] * frequencies  # [B, T, half]
    cos, sin = mx.cos(angle)[:, :, None], mx.sin(angle)[:, :, None]

    def rope(h: mx.array, norm: mx.array) -> mx.array:
        h = h * mx.rsqrt(mx.mean(h * h, axis=-1, keepdims=True) + eps) * norm.astype(mx.float32)
        x1, x2, rest = h[..., :half], h[..., half:rope_dim], h[..., rope_dim:]
        return mx.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1).transpose(0, 2, 1, 3)

    def append(cache: mx.array, rows: mx.array) -> mx.array:
        if cache.dtype == mx.uint8:
            rows = quantize_kv(rows.astype(projection.dtype))
        else:
            cache = cache.astype(mx.float32)
        return mx.concatenate([cache[:, :, :offset], rows, cache[:, :, offset + T :]], axis=2)

    return rope(q, q_norm), append(keys, rope(k, k_norm)), append(values, v.transpose(0, 2, 1, 3))
