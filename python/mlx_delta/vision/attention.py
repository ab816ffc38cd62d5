"""Attention of all patches of a frame to each other, by the fastest products that a device has."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import ops

_FUSED = (64, 80, 128)  # head dims that MLX has a Metal kernel for, which keeps no scores; zeros fill up to them
_ROWS = 1024  # queries at a time on a CPU: their scores are kept


def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """softmax(q k^T / sqrt(D)) v of frames [F, H, L, D] -> [F, H, L, D], in float32 or as MLX's kernel does it.

    On a CPU the products are qmm's: those of ``mx.fast.scaled_dot_product_attention`` are some 20 times as slow there,
    and depend on how many frames there are.
    """
    if mx.default_device() == mx.Device(mx.gpu):
        return _fused(q, k, v)
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v = (a.astype(mx.float32) for a in (q * scale if dtype == mx.float32 else q.astype(mx.float32) * scale, k, v))
    frames = [mx.stack([_head(*each) for each in zip(*heads, strict=True)]) for heads in zip(q, k, v, strict=True)]
    return mx.stack(frames).astype(dtype)


def _head(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """[L, D] each, q scaled."""
    values = mx.contiguous(v.T)
    blocks = [q[first : first + _ROWS] for first in range(0, q.shape[0], _ROWS)]
    done = [ops.qmm(mx.softmax(ops.qmm(block, (k,)), axis=-1), (values,)) for block in blocks]
    return done[0] if len(done) == 1 else mx.concatenate(done)


def _fused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    dim = q.shape[-1]
    padding = next((each - dim for each in _FUSED if each >= dim), 0)
    if padding:
        q, k, v = (mx.pad(a, [(0, 0), (0, 0), (0, 0), (0, padding)]) for a in (q, k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=dim**-0.5)[..., :dim]
