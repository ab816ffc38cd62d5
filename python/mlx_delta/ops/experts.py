"""experts: the MLPs that a token was routed to, and the shared one, weighted and added to it."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.ops.matrix import Matrix, dense


def experts_reference(
    x: mx.array,
    chosen: mx.array,
    weights: mx.array,
    matrices: Sequence[Matrix],
    shared: Sequence[Matrix],
    norm: mx.array,
    *,
    eps: float = 1e-6,
) -> mx.array:
    """``experts`` in float32: every expert of every token, those that were not chosen with weight 0."""
    h = x.astype(mx.float32)
    h = h * mx.rsqrt(mx.mean(h * h, axis=-1, keepdims=True) + eps) * norm.astype(mx.float32)
    gate, up, down = (dense(matrix) for matrix in matrices)
    count, hidden = down.shape[0] // x.shape[-1], x.shape[-1]
    gate, up, down = gate.reshape(count, -1, hidden), up.reshape(count, -1, hidden), down.reshape(count, hidden, -1)

    def mlp(gate: mx.array, up: mx.array, down: mx.array) -> mx.array:
        g = h @ gate.T
        return (g * mx.sigmoid(g) * (h @ up.T)) @ down.T

    y = x.astype(mx.float32)
    for e in range(count):
        weight = mx.where(chosen == e, weights[..., :-1], 0).sum(axis=-1, keepdims=True)
        y = y + weight * mlp(gate[e], up[e], down[e])
    return y + weights[..., -1:] * mlp(*(dense(matrix) for matrix in shared))
