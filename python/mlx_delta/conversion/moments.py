"""Rounding with error feedback (GPTQ), of weights that make up for what the matrices before them lost.

The error of a quantized matrix's outputs is, with dW = W - Q and the second moments H = E[x x^T] of its inputs,

    E |dW x|^2 = trace(dW H dW^T) = sum over columns j of D_j |(dW U)_j|^2,    H = U D U^T,

with U upper triangular, its diagonal 1, and D diagonal. (dW U)_j = (t - q)_j for the target t_j = w_j + sum over i < j
of (w_i - q_i) U_ij, so each column in turn is rounded to the nearest of its target, and what matters of a column is
D_j: the part of x_j that the columns after it cannot make up for. A group's scale and bias are fitted (``fit``), by D,
when its turn comes, to the targets that its columns have if none of them leaves anything over: w + f U_g^-1, where f is
what the columns before feed to it and U_g its own part of U. With H diagonal U is 1, and all of it the plain fit.

Columns of a group go by falling H_jj, so that what weighs most is rounded while most can still make up for it. H is
damped (``damping``), for directions that calibration has not seen, or not often enough to tell chance from rule.

x is what the quantized model gives the matrix, x + d what the original gives its own, and the product (W x) should be
W (x + d), or W x + r where a residual stream is to be restored as well. The best weights for that are no longer W:

    W' = W + E[(W d) x^T] H^-1,  or  W + E[r x^T] H^-1,    minimise  E |W' x - (W x + r)|^2 + damping |W' - W|^2.

W' is what is rounded, or, of a matrix that stays whole, what is kept.

Sources: Frantar et al., GPTQ, arXiv 2210.17323; the form with U and D: Chee et al., QuIP, arXiv 2307.13304 (LDLQ);
targets of the original model: Li et al., GPTAQ, arXiv 2504.02692.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta import _core, ops
from mlx_delta.config import Quantization
from mlx_delta.conversion.fit import Fit, fit_groups

# Of the typical diagonal of H: always, and times columns over tokens. The regression has K unknowns a row, and what is
# missing is mostly chance: on 16 k tokens of the tiny model 1, 3 and 6 gave 0.00350, 0.00328 and 0.00314 nats.
DAMPING, DAMPING_BY_TOKENS = 0.01, 6.0
_BLOCK = 1 << 24  # values of W' at a time
ORDER_BLOCK = 64  # columns are put in order within blocks of this, or of the group where it is smaller


@dataclass(frozen=True)
class Feedback:
    """H = U D U^T of columns in ``order`` (int32 [K], which column is at each place; within groups), and what lacks.

    upper: float32 [K, K], U above the diagonal; what is on and below it means nothing. diagonal: float32 [K], D.
    lack: what ``Moments`` sums of it, as a mean over the tokens, by column.
    """

    upper: mx.array
    diagonal: mx.array
    order: mx.array
    lack: mx.array
    of_inputs: bool

    def restored(self, weight: mx.array) -> Iterator[mx.array]:
        """W' of ``weight`` [N, K], float32, in blocks of rows: the original model's outputs from this one's inputs."""
        block = max(1, _BLOCK // weight.shape[1])
        for start in range(0, weight.shape[0], block):
            rows = weight[start : start + block].astype(mx.float32)
            change = ops.qmm(rows, [self.lack]) if self.of_inputs else mx.array(self.lack[start : start + block])
            mx.eval(rows, change)
            _core.solve_moments(change, self.upper, self.diagonal, self.order)
            rows = rows + change
            mx.eval(rows)
            yield rows


@dataclass(frozen=True)
class ExpertFeedback:
    """That of each expert's rows, made when its turn comes: those of all would be gigabytes."""

    of: Callable[[int], Feedback]


class Moments:
    """Sums over tokens, float32: of x x^T [K, K], of which the upper triangle counts, and of what is missing.

    x is what a matrix [N, K] reads; ``lack`` the sum of x d^T [K, K], d what its inputs lack of the original model's,
    or, given ``outputs`` N, of r x^T [N, K], r what its outputs do.
    """

    def __init__(self, columns: int, outputs: int | None = None) -> None:
        self.tokens = 0
        self._of_inputs = outputs is None
        self._sums, self._lack = mx.zeros((columns, columns)), mx.zeros((outputs or columns, columns))
        mx.eval(self._sums, self._lack)

    def add(self, x: mx.array, lack: mx.array) -> None:
        """Add the tokens of x float32 [M, K], and their d [M, K] or r [M, N]."""
        x, lack = mx.contiguous(x), mx.contiguous(lack)
        mx.eval(x, lack)
        _core.add_moments(self._sums, x)
        _core.add_moments(self._lack, *((lack, x) if self._of_inputs else (x, lack)))
        self.tokens += x.shape[0]

    @property
    def finite(self) -> bool:
        """Whether all that was added is finite, and not too large to be squared."""
        return bool(np.isfinite(self.importance).all() and np.isfinite(np.array(self._lack, copy=False)).all())

    @property
    def importance(self) -> np.ndarray:
        """E[x_k^2], float32 [K]."""
        return np.array(mx.diagonal(self._sums)) / np.float32(max(1, self.tokens))

    def feedback(self, block: int = ORDER_BLOCK) -> Feedback:
        """The factors, columns in order within ``block`` of them. The sums are used up: their memory becomes U's."""
        order, part = mx.array(falling_order(self.importance, block)), 1 / max(1, self.tokens)
        mx.eval(order)
        added = damping(self.importance, self.tokens)
        diagonal = _core.factor_moments(self._sums, order, part, added)
        self._lack = self._lack * part
        mx.eval(self._lack)
        return Feedback(self._sums, diagonal, order, self._lack, self._of_inputs)


def falling_order(importance: np.ndarray, block: int) -> np.ndarray:
    """int32 [K]: the columns of each block of ``block`` by falling importance, the first of equals first."""
    starts = range(0, importance.size, block)
    return np.concatenate([i + np.argsort(-importance[i : i + block], kind="stable") for i in starts]).astype(np.int32)


def damping(importance: np.ndarray, tokens: int) -> float:
    """What is added to the diagonal of H, which is ``importance`` [K], estimated from that many tokens.

    A part of its median: a few channels may be a thousand times as large as the others.
    """
    typical = next((float(value) for value in (np.median(importance), np.mean(importance)) if value > 0), 1.0)
    return typical * (DAMPING + DAMPING_BY_TOKENS * importance.size / max(1, tokens))


def restoring_reference(weight: np.ndarray, damped: np.ndarray, lack: np.ndarray) -> np.ndarray:
    """``Feedback.restored`` in float64: weight [N, K], H [K, K], damped, lack E[(W d) x^T] or E[r x^T] [N, K]."""
    return weight + np.linalg.solve(damped, lack.T).T


def feedback_reference(
    weight: np.ndarray, damped: np.ndarray, width: Quantization, order: np.ndarray
) -> tuple[np.ndarray, float]:
    """GPTQ as it was published, in float64: (Q [N, K], its trace(dW H dW^T)) of weight [N, K] under H [K, K], damped.

    C is the upper Cholesky factor of its inverse, H^-1 = C^T C, and what a column leaves over, divided by C_jj, is
    taken from all columns after it times their C_jk.
    """
    w, h = weight.astype(np.float64)[:, order], damped.astype(np.float64)[np.ix_(order, order)]
    c = np.linalg.cholesky(np.linalg.inv(h)).T
    n, result = width.group_size, np.empty_like(w)
    targets = w.copy()
    for j in range(w.shape[1]):
        if j % n == 0:
            importance = np.repeat(1 / np.diag(c)[j : j + n, None] ** 2, w.shape[0], axis=1)
            group = np.ascontiguousarray(targets[:, j : j + n].T, np.float32)
            _, s, b, stretch = fit_groups(group, importance.astype(np.float32), width.bits)
        q = np.clip(np.rint((targets[:, j] * stretch - b) / s), 0, 2**width.bits - 1)
        result[:, j] = s.astype(np.float64) * q + b
        targets[:, j + 1 :] -= ((targets[:, j] - result[:, j]) / c[j, j])[:, None] * c[j, j + 1 :]
    error = float((((w - result) @ h) * (w - result)).sum())
    back = np.empty_like(result)
    back[:, order] = result
    return back, error


def fit_with_feedback(weight: mx.array, width: Quantization, feedback: Feedback) -> Fit:
    """Restore ``weight`` [N, K], quantize it with error feedback; ``errors`` add up to trace(dW H dW^T), dW = W' - Q.

    Blocks of rows go straight to their places, for all of W' of a 9B's lm_head would be 4 GB.
    """
    parts = feedback.diagonal, width.bits, width.group_size, feedback.upper, feedback.order
    rows, columns = weight.shape
    sizes = columns * width.bits // 32, *(columns // width.group_size,) * 3
    dtypes = mx.uint32, mx.bfloat16, mx.bfloat16, mx.float32
    result = [mx.zeros((rows, size), dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    start = 0
    for block in feedback.restored(weight):
        for array, found in zip(result, _core.fit_affine(block, *parts), strict=True):
            array[start : start + block.shape[0]] = found
        mx.eval(result)  # one by one they are in place
        start += block.shape[0]
    return Fit(*result)
