"""qmm: x times (quantized) weight matrices, with RMSNorm before and residual or SwiGLU after fused in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.matrix import Matrix, dense

# Called with (x, matrices, norm, eps) before each product.
Observer = Callable[[mx.array, Sequence[Matrix], mx.array | None, float], None]
_observer: Observer | None = None


@contextmanager
def observed_products(observer: Observer) -> Iterator[None]:
    """Within the block ``observer`` sees what every ``qmm`` is given: how calibration learns what matrices read."""
    global _observer
    outer, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = outer


def qmm(
    x: mx.array,
    segments: Sequence[Matrix | mx.array],
    *,
    norm: mx.array | None = None,
    eps: float = 1e-6,
    residual: mx.array | None = None,
    activation: str | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """Multiply x by one or more row-concatenated weight matrices.

    ::

        h = x * rsqrt(mean(x^2) + eps) * norm     if norm is given, else x        [.., K]
        y = concat_s(h @ W_s.T)                                                   [.., N], N = sum of the rows
        y = silu(h @ W_0.T) * (h @ W_1.T)         if activation == "swiglu"       [.., N], segments = [gate, up]
        y = y + residual                          if residual is given

    Args:
        x: [.., K], float32, float16 or bfloat16; it is never rounded.
        segments: matrices [N_s, K] of any mix of widths; a plain mx.array counts as ``Matrix.plain``.
        norm: [K], the RMSNorm weight as it multiplies (1 + w for zero-centred checkpoints).
        eps: added to the mean square.
        residual: [.., N], x's dtype.
        activation: None or "swiglu".

    Returns: [.., N] of x's dtype. A row has the same bits whatever the number of rows.
    Raises: ValueError naming the argument, what was expected and what was found.
    """
    matrices: Sequence[Matrix] = segments  # type: ignore[assignment]
    for each in segments:
        if not isinstance(each, Matrix):
            matrices = [s if isinstance(s, Matrix) else Matrix.plain(s) for s in segments]
            break
    if _observer is not None:
        _observer(x, matrices, norm, eps)
    return _core.qmm(x, matrices, norm=norm, eps=eps, residual=residual, activation=activation, stream=stream)


def qmm_reference(
    x: mx.array,
    segments: Sequence[Matrix | mx.array],
    *,
    norm: mx.array | None = None,
    eps: float = 1e-6,
    residual: mx.array | None = None,
    activation: str | None = None,
) -> mx.array:
    """``qmm`` in float32: the formula of its docstring, one line each."""
    h = x.astype(mx.float32)
    if norm is not None:
        h = h * mx.rsqrt(mx.mean(h * h, axis=-1, keepdims=True) + eps) * norm.astype(mx.float32)
    products = [h @ dense(s if isinstance(s, Matrix) else Matrix.plain(s)).T for s in segments]
    if activation == "swiglu":
        gate, up = products
        products = [gate * mx.sigmoid(gate) * up]
    y = mx.concatenate(products, axis=-1)
    return y if residual is None else y + residual.astype(mx.float32)
