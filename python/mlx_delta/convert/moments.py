"""Rounding with error feedback: what one column's rounding leaves over, the columns after it make up for (GPTQ).

The error of a quantized matrix's outputs is, with dW = W - Q and the second moments H = E[x x^T] of its inputs,

    E |dW x|^2 = trace(dW H dW^T) = sum over columns j of D_j |(dW U)_j|^2,    H = U D U^T,

with U upper triangular, its diagonal 1, and D diagonal. (dW U)_j = (t - q)_j for the target t_j = w_j + sum over i < j
of (w_i - q_i) U_ij, so each column in turn is rounded to the nearest of its target, and what matters of a column is
D_j: the part of x_j that the columns after it cannot make up for. A group's scale and bias are fitted (``fit``), by D,
when its turn comes, to the targets that its columns have if none of them leaves anything over: w + f U_g^-1, where f is
what the columns before feed to it and U_g its own part of U. With H diagonal U is 1, and all of it the plain fit.

Columns of a group go by falling H_jj, so that what weighs most is rounded while most can still make up for it. H is
damped: 1 % of its mean diagonal is added to the diagonal, for directions that calibration has not seen.

Source: Frantar et al., GPTQ, arXiv 2210.17323; the form with U and D: Chee et al., QuIP, arXiv 2307.13304 (LDLQ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.config import Quantization
from mlx_delta.convert.fit import Fit, fit_groups

DAMPING = 0.01
ORDER_BLOCK = 64  # columns are put in order within blocks of this, or of the group where it is smaller


@dataclass(frozen=True)
class Feedback:
    """H = U D U^T of columns in ``order`` (int32 [K], which column is at each place; within groups).

    upper: float32 [K, K], U above the diagonal; what is on and below it means nothing. diagonal: float32 [K], D.
    """

    upper: mx.array
    diagonal: mx.array
    order: mx.array


class Moments:
    """Sums over tokens of x x^T, float32 [K, K], of which the upper triangle counts."""

    def __init__(self, columns: int) -> None:
        self.tokens = 0
        self._sums = mx.zeros((columns, columns))
        mx.eval(self._sums)

    def add(self, x: mx.array) -> None:
        """Add the tokens of x float32 [M, K]."""
        x = mx.contiguous(x)
        mx.eval(x)
        _core.add_moments(self._sums, x)
        self.tokens += x.shape[0]

    @property
    def importance(self) -> np.ndarray:
        """E[x_k^2], float32 [K]."""
        return np.array(mx.diagonal(self._sums)) / np.float32(max(1, self.tokens))

    def feedback(self, scales: np.ndarray | None = None, block: int = ORDER_BLOCK) -> Feedback:
        """The factors for inputs divided by ``scales`` [K]. The sums are used up: their memory becomes U's."""
        s = np.ones(self._sums.shape[0], np.float32) if scales is None else scales.astype(np.float32)
        order = falling_order(self.importance / s**2, block)
        ready = mx.array(s), mx.array(order)
        mx.eval(ready)
        diagonal = _core.factor_moments(self._sums, *ready, 1 / max(1, self.tokens), DAMPING)
        return Feedback(self._sums, diagonal, ready[1])


class Feedbacks:
    """The feedback of matrices some of which share their input: factored when the first is taken, gone after the last.

    groups: group size by module; scales: what AWQ divides a module's inputs by, as in ``Moments.feedback``.
    """

    def __init__(
        self, groups: Mapping[str, int], moments: Mapping[str, Moments], scales: Mapping[str, np.ndarray]
    ) -> None:
        self._scales = scales
        self._waiting = {module: moments[module] for module in groups if module in moments}
        self._blocks: dict[int, int] = {}  # by moments, the smallest group of the matrices that share them
        for module, sums in self._waiting.items():
            self._blocks[id(sums)] = min(groups[module], self._blocks.get(id(sums), ORDER_BLOCK))
        self._factored: dict[int, Feedback] = {}

    def take(self, module: str) -> Feedback | None:
        """That of ``module``, once; None where nothing is known of its input."""
        sums = self._waiting.pop(module, None)
        if sums is None:
            return None
        if id(sums) not in self._factored:
            self._factored[id(sums)] = sums.feedback(self._scales.get(module), self._blocks[id(sums)])
        shared = any(other is sums for other in self._waiting.values())
        return self._factored[id(sums)] if shared else self._factored.pop(id(sums))


def falling_order(importance: np.ndarray, block: int) -> np.ndarray:
    """int32 [K]: the columns of each block of ``block`` by falling importance, the first of equals first."""
    starts = range(0, importance.size, block)
    return np.concatenate([i + np.argsort(-importance[i : i + block], kind="stable") for i in starts]).astype(np.int32)


def feedback_reference(
    weight: np.ndarray, moments: np.ndarray, width: Quantization, order: np.ndarray
) -> tuple[np.ndarray, float]:
    """GPTQ as it was published, in float64: (Q [N, K], its trace(dW H dW^T)) of weight [N, K] under moments [K, K].

    H is damped as ``Moments.feedback`` does it; C is the upper Cholesky factor of its inverse, H^-1 = C^T C, and what
    a column leaves over, divided by C_jj, is taken from all columns after it times their C_jk.
    """
    h = moments.astype(np.float64)
    h = h + DAMPING * np.diag(h).mean() * np.eye(h.shape[0])
    w, h = weight.astype(np.float64)[:, order], h[np.ix_(order, order)]
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
    """Quantize ``weight`` [N, K] with error feedback; ``errors`` add up to trace(dW H dW^T)."""
    weight = mx.contiguous(weight)
    mx.eval(weight)
    parts = feedback.diagonal, width.bits, width.group_size, feedback.upper, feedback.order
    return Fit(*_core.fit_affine(weight, *parts))
