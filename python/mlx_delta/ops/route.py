"""route: which experts take each token, and how much each of them counts."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta.ops.matrix import Matrix, dense


def route_reference(
    x: mx.array, router: Matrix, shared_gate: Matrix, norm: mx.array, *, chosen: int, eps: float = 1e-6
) -> tuple[mx.array, mx.array]:
    """``route`` in float32: the formula of its docstring, one line each."""
    h = x.astype(mx.float32)
    h = h * mx.rsqrt(mx.mean(h * h, axis=-1, keepdims=True) + eps) * norm.astype(mx.float32)
    shares = mx.softmax(h @ dense(router).T, axis=-1)
    experts = mx.argsort(-shares, axis=-1)[..., :chosen]
    weights = mx.take_along_axis(shares, experts, axis=-1)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return experts.astype(mx.uint32), mx.concatenate([weights, mx.sigmoid(h @ dense(shared_gate).T)], axis=-1)
