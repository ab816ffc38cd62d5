"""experts: the MLPs that a token was routed to, and the shared one, weighted and added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.ops.matrix import Matrix, dense

# Called with (x, chosen, matrices, shared, norm, eps) before each.
Observer = Callable[[mx.array, mx.array, Sequence[Matrix], Sequence[Matrix], mx.array, float], None]
_observer: Observer | None = None


@contextmanager
def observed_experts(observer: Observer) -> Iterator[None]:
    """Within the block ``observer`` sees what every ``experts`` is given, as ``qmm.observed_products``."""
    global _observer
    outer, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = outer


def expert_rows(matrices: Sequence[Matrix], expert: int, count: int) -> list[Matrix]:
    """Those of one of ``count`` experts."""

    def part(matrix: Matrix) -> Matrix:
        size = matrix.rows // count
        rows = slice(expert * size, (expert + 1) * size)
        if matrix.scales is None or matrix.biases is None:
            return Matrix.plain(matrix.weight[rows])
        scales, biases = matrix.scales[rows], matrix.biases[rows]
        return Matrix.affine(matrix.weight[rows], scales, biases, matrix.bits, matrix.group_size)

    return [part(matrix) for matrix in matrices]


def experts(
    x: mx.array,
    chosen: mx.array,
    weights: mx.array,
    matrices: Sequence[Matrix],
    shared: Sequence[Matrix],
    norm: mx.array,
    *,
    eps: float = 1e-6,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """Add what each token's experts, and the shared one, make of it.

    ::

        h   = x * rsqrt(mean(x^2) + eps) * norm                                           [.., K]
        a_e = silu(h @ gate_e.T) * (h @ up_e.T)                                           [.., I]
        y   = x + sum_i weights_i * a_e @ down_e.T, e = chosen_i, for i < k
                + weights_k * a_shared @ down_shared.T                                    [.., K]

    Args:
        x: [.., K], float32, float16 or bfloat16; never rounded.
        chosen: uint32 [.., k], each below E. weights: float32 [.., k + 1], as ``route`` has them.
        matrices: gate, up [E * I, K] and down [E * K, I], those of all experts one below the other; of any widths.
        shared: gate, up [I_s, K] and down [K, I_s] of the shared expert.
        norm: [K], the RMSNorm weight as it multiplies.

    Returns: [.., K] of x's dtype; the a are float32. A row has the same bits whatever the number of rows. An expert
        that some rows have chosen is read once for all of them.
    Raises: ValueError naming the argument, what was expected and what was found. An expert that is not there makes the
        row NaN.
    """
    if _observer is not None:
        _observer(x, chosen, matrices, shared, norm, eps)
    return _core.experts(x, chosen, weights, list(matrices), list(shared), norm, eps=eps, stream=stream)


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
    """``experts`` in float32, one expert after the other: of the tokens that chose it."""
    lead, x, chosen, weights = x.shape, *(a.reshape(-1, a.shape[-1]) for a in (x, chosen, weights))
    h = x.astype(mx.float32)
    h = h * mx.rsqrt(mx.mean(h * h, axis=-1, keepdims=True) + eps) * norm.astype(mx.float32)
    gate, up, down = (dense(matrix) for matrix in matrices)
    count, hidden = down.shape[0] // x.shape[-1], x.shape[-1]
    gate, up, down = gate.reshape(count, -1, hidden), up.reshape(count, -1, hidden), down.reshape(count, hidden, -1)

    def mlp(h: mx.array, gate: mx.array, up: mx.array, down: mx.array) -> mx.array:
        g = h @ gate.T
        return (g * mx.sigmoid(g) * (h @ up.T)) @ down.T

    y = x.astype(mx.float32)
    numbers = np.array(chosen)
    for e in range(count):
        of = np.flatnonzero((numbers == e).any(axis=-1))
        if of.size:
            rows = mx.array(of)
            weight = mx.where(chosen[rows] == e, weights[rows, :-1], 0).sum(axis=-1, keepdims=True)
            y = y.at[rows].add(weight * mlp(h[rows], gate[e], up[e], down[e]))
    return (y + weights[:, -1:] * mlp(h, *(dense(matrix) for matrix in shared))).reshape(lead)
