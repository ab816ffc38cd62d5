"""attention: causal grouped-query attention over the KV cache with the output gate folded in."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.kv_rows import dequantize_kv


def attention(
    q: mx.array,
    projection: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    length: int,
    scale: float,
    start: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """Attend from the T newest tokens to all before them.

    ::

        p = softmax_s(scale * q . keys[s])      s from start[b] to length - T + t, for new token t
        y = (p @ values) * sigmoid(gate)        heads side by side

    Args:
        q: [B, Hq, T, D] from ``attention_prepare``; float32, float16 or bfloat16.
        projection: [B, T, >= 2 Hq D]: the gate of head h is its columns h * 2D + D .. h * 2D + 2D, read in place.
        keys, values: [B, Hkv, S, D], ``length`` rows valid, the T new ones last; or in 8 bits, uint8
            [B, Hkv, S, kv_row_bytes(D)]. Head h reads h // (Hq / Hkv).
        start: int [B], the first row of a left-padded sequence; None: 0. A token before it gives 0.

    Returns: [B, T, Hq D] of q's dtype. Sums are float32. Raises: ValueError naming the argument.
    Source: Hugging Face ``Qwen3_5Attention`` (modeling_qwen3_5.py).
    """
    return _core.attention(q, projection, keys, values, length=length, scale=scale, start=start, stream=stream)


def attention_reference(
    q: mx.array,
    projection: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    length: int,
    scale: float,
    start: mx.array | None = None,
) -> mx.array:
    """``attention`` in float32, with the whole score matrix."""
    B, Hq, T, D = q.shape
    group = Hq // keys.shape[1]
    cached = (x[:, :, :length] for x in (keys, values))
    floats = (dequantize_kv(x, D) if x.dtype == mx.uint8 else x.astype(mx.float32) for x in cached)
    k, v = (mx.repeat(x, group, axis=1) for x in floats)
    scores = scale * (q.astype(mx.float32) @ k.swapaxes(-1, -2))  # [B, Hq, T, length]
    rows = mx.arange(length)
    visible = rows <= mx.arange(length - T, length)[:, None]
    if start is not None:
        visible = visible & (rows >= start[:, None, None, None])
    p = mx.softmax(mx.where(visible, scores, -mx.inf), axis=-1)
    p = mx.where(mx.any(visible, axis=-1, keepdims=True), p, 0.0)  # a padding token sees nothing
    gate = projection[..., : 2 * Hq * D].astype(mx.float32).reshape(B, T, Hq, 2, D)[:, :, :, 1]
    y = (p @ v).transpose(0, 2, 1, 3) * mx.sigmoid(gate)
    return y.reshape(B, T, Hq * D)
