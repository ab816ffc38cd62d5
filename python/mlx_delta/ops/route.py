"""route: which experts take each token, and how much each of them counts."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.matrix import Matrix, dense


def route(
    x: mx.array,
    router: Matrix,
    shared_gate: Matrix,
    norm: mx.array,
    *,
    chosen: int,
    eps: float = 1e-6,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array]:
    """The experts of each token, and their weights.

    ::

        h       = x * rsqrt(mean(x^2) + eps) * norm                   [.., K]
        share   = softmax(h @ router.T)                               [.., E], over all experts
        experts = the ``chosen`` experts of the largest share         [.., k], largest first, of equals the first
        weights = share[experts] / sum(share[experts]),
                  then sigmoid(h @ shared_gate.T)                     [.., k + 1]

    Args:
        x: [.., K], float32, float16 or bfloat16; what is computed from it is float32, so that its dtype has no say in
            which experts are chosen.
        router: [E, K]. shared_gate: [1, K].
        norm: [K], the RMSNorm weight as it multiplies.
        chosen: k, from 1 to E.

    Returns: experts uint32 [.., k], and weights float32 [.., k + 1], the last that of the shared expert.
        A row has the same bits whatever the number of rows.
    Raises: ValueError naming the argument, what was expected and what was found.
    """
    return _core.route(x, router, shared_gate, norm, chosen=chosen, eps=eps, stream=stream)


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
