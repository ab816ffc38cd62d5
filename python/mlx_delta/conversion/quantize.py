"""One matrix to MLX's affine form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import mlx.core as mx
import numpy as np

from mlx_delta.conversion.fit import Fit, fit
from mlx_delta.conversion.moments import ExpertFeedback, Feedback, fit_with_feedback
from mlx_delta.conversion.recipe import TensorPlan


def encode(
    plan: TensorPlan,
    array: mx.array,
    importance: np.ndarray | None = None,
    fitted: bool = True,
    feedback: Feedback | ExpertFeedback | None = None,
) -> Iterator[tuple[str, mx.array]]:
    """The arrays that ``plan`` writes for ``array`` [..., any float dtype], in the order of ``plan.entries``.

    Kept: cast to the plan's dtype. Quantized: packed uint32 [N, K * bits / 32], then scales and biases
    bfloat16 [N, K / group], fitted by ``importance`` [K] of the inputs (None: all equal). Of experts
    [E, N, K] likewise, and importance may be each one's own, [E, K]. With ``feedback``, where
    importance is too, the array is first made to restore the original model's outputs, and errors are fed forward.
    ``fitted`` False is MLX's own ``mx.quantize``, of the matrix cast to bfloat16: it gives scales the matrix's dtype,
    and rounds q against the scales as they are stored.
    """
    width = plan.quantization
    if width is None:
        if isinstance(feedback, Feedback):
            array = mx.concatenate([block.astype(plan.dtype) for block in feedback.restored(array)])
        yield plan.name, array.astype(plan.dtype)
        return
    if not fitted:
        parts = tuple(mx.quantize(array.astype(mx.bfloat16), group_size=width.group_size, bits=width.bits))
    elif isinstance(feedback, Feedback):
        parts = _parts(fit_with_feedback(array, width, feedback))
    elif feedback is not None:
        parts = _stacked(fit_with_feedback(array[e], width, feedback.of(e)) for e in range(array.shape[0]))
    elif importance is not None and importance.ndim == 2:
        parts = _stacked(fit(array[e], width, importance[e]) for e in range(array.shape[0]))
    else:
        parts = _parts(fit(array.reshape(-1, array.shape[-1]), width, importance))
    for entry, part in zip(plan.entries, parts, strict=True):
        yield entry.name, part.reshape(entry.shape)


def _parts(fit: Fit) -> tuple[mx.array, ...]:
    return fit.packed, fit.scales, fit.biases


def _stacked(fits: Iterable[Fit]) -> tuple[mx.array, ...]:
    return tuple(mx.stack(list(kind)) for kind in zip(*map(_parts, fits), strict=True))
