"""AWQ: scale the input channels that matter up before quantizing, and their producer down by as much.

A fold is a producer (a norm's weight, or the rows of a matrix) and the matrices that read its output:
producer / s, columns * s, the product is unchanged. What changes is where rounding errors fall: s grows with a
channel's importance, so its weights are rounded more finely. s = rms(x)^ratio over its geometric mean, and importance
is rms(x)^2; the ratio is searched on a grid by the error that quantization makes,

    error = sum over matrices, n, k of importance_k * (w_nk - Q(w * s)_nk / s_k)^2,

and 0, which is s = 1, wins where nothing gains. Scaling a matrix's rows does not change its relative error (groups lie
along K), so the folds of one layer are independent of each other.

Where a producer has fewer channels than its readers have columns, s is shared among those that read one channel. Which
folds there are is the architecture's: ``arch.base.Fold``.
Source: Lin et al., AWQ: Activation-aware Weight Quantization, arXiv 2306.00978.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta.arch.base import Fold
from mlx_delta.config import Quantization
from mlx_delta.conversion.fit import fit_error
from mlx_delta.conversion.imatrix import Importance

_RATIOS = tuple(i / 10 for i in range(11))
_MAX_SCALE = 64.0  # keeps folded norms and columns well inside bfloat16, whatever the imatrix says
_SAMPLE_ROWS = 128  # rows that the search looks at, evenly spaced: with a thousand columns or more, enough to choose by


@dataclass(frozen=True)
class FoldGain:
    """What a fold's search found: errors are importance-weighted sums over the rows it looked at."""

    producer: str
    ratio: float
    plain_error: float
    error: float


@dataclass(frozen=True)
class FoldedLayer:
    """A layer's arrays by full name, the importance of what its matrices now read, and what was gained.

    scales: by module, what its inputs are divided by now, float32 [K]; modules without are as they were.
    """

    arrays: dict[str, mx.array]
    importance: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    gains: list[FoldGain]


def channel_scales(importance: np.ndarray, ratio: float) -> np.ndarray:
    """s = sqrt(importance)^ratio / its geometric mean, float32 [K], within [1/64, 64]. All ones for ratio 0."""
    logs = ratio / 2 * np.log(clean_importance(importance).astype(np.float64))
    return np.exp(np.clip(logs - logs.mean(), -np.log(_MAX_SCALE), np.log(_MAX_SCALE))).astype(np.float32)


def clean_importance(importance: np.ndarray) -> np.ndarray:
    """Importance float32 [K], or [E, K] of experts, that is finite and positive: silent and broken channels get 1e-4 of
    the mean, and where all are silent each is as important as another."""
    values = np.where(np.isfinite(importance) & (importance > 0), importance, 0).astype(np.float32)
    mean = values.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.where(mean > 0, np.maximum(values, (1e-4 * mean).astype(np.float32)), np.float32(1))


def quantization_error(weight: mx.array, width: Quantization, scales: np.ndarray, importance: np.ndarray) -> float:
    """sum importance_k (w_nk - Q(w * s)_nk / s_k)^2 of ``weight`` [N, K] quantized as conversion does it."""
    return fit_error(weight.astype(mx.float32) * mx.array(scales), width, importance / scales**2)


def weighted_error(weight: mx.array, width: Quantization, importance: np.ndarray) -> float:
    """``quantization_error`` without scales, of evenly spaced rows of ``weight``."""
    return quantization_error(_sample(weight), width, np.ones_like(importance), importance)


def search_scales(
    matrices: Sequence[tuple[mx.array, Quantization]],
    importance: np.ndarray,
    channels: np.ndarray | None = None,
    ratios: Sequence[float] = _RATIOS,
) -> tuple[np.ndarray, float, float, float]:
    """The best s for matrices [N, K] that share their input: (s float32 [C], ratio, error with s = 1, error).

    channels: int [K], the producer's channel that each column reads; None: C = K, in order.
    """
    importance = clean_importance(importance)
    columns = np.arange(importance.size) if channels is None else channels
    shared = np.bincount(columns, importance) / np.bincount(columns)
    samples = [(_sample(weight), width) for weight, width in matrices]

    def error(ratio: float) -> float:
        scales = channel_scales(shared, ratio)[columns]
        return sum(quantization_error(weight, width, scales, importance) for weight, width in samples)

    plain = error(0)
    errors = [error(ratio) if ratio else plain for ratio in ratios]
    best = int(np.argmin(errors))  # the first of equals, so the identity wins a tie
    return channel_scales(shared, ratios[best]), ratios[best], plain, errors[best]


def apply_fold(
    producer: mx.array, consumers: Sequence[mx.array], scales: np.ndarray, channels: np.ndarray | None = None
) -> tuple[mx.array, list[mx.array], np.ndarray]:
    """(producer / s, [columns * s], s per column), so that every product is what it was.

    A norm's weight [C] comes back as bfloat16, as it will be stored; its rounding error, that of 1 + w included, goes
    into the scale of the columns. A matrix [C, *] is divided by rows. Matrices are float32.
    """
    s = mx.array(scales)
    if producer.ndim == 1:
        exact = producer.astype(mx.float32)
        folded = (exact / s).astype(mx.bfloat16)
        stored = folded.astype(mx.float32)
        s = mx.where(stored == 0, s, exact / mx.where(stored == 0, 1, stored))
    else:
        folded = producer.astype(mx.float32) / s[:, None]
    if channels is not None:
        s = s[mx.array(channels)]
    return folded, [weight.astype(mx.float32) * s for weight in consumers], np.array(s)


def fold_layer(
    prefix: str,
    arrays: Mapping[str, mx.array],
    widths: Mapping[str, Quantization | None],
    importance: Importance,
    folds: Sequence[Fold],
    ratio: float | None = None,
) -> FoldedLayer:
    """Fold one layer (``prefix`` "language_model.model.layers.0."); ``ratio`` None searches each fold's own.

    A fold is left out where it would gain nothing: no consumer is quantized, or the importance of none is known.
    """
    result = FoldedLayer(dict(arrays), dict(importance), {}, [])

    def weight(module: str) -> mx.array:
        return result.arrays[f"{prefix}{module}.weight"]

    for fold in folds:
        producer = f"{prefix}{fold.producer}.weight"
        consumers = [name for name in (f"{prefix}{m}.weight" for m in fold.consumers) if name in arrays]
        known = [importance[m] for m in (name.removesuffix(".weight") for name in consumers) if m in importance]
        quantized = [(arrays[name], width) for name in consumers if (width := widths[name]) is not None]
        if not known or not quantized:
            continue
        columns = arrays[consumers[0]].shape[-1]
        channels = None if fold.channels is None else fold.channels(weight, columns)
        ratios = _RATIOS if ratio is None else (ratio,)
        # Matrices that read the same vector have the same importance, so the first speaks for all; experts read it for
        # their own tokens alone, and come after one that reads all.
        scales, chosen, plain_error, error = search_scales(quantized, known[0], channels, ratios)
        before = [result.arrays[name] for name in consumers]
        result.arrays[producer], folded, s = apply_fold(result.arrays[producer], before, scales, channels)
        result.arrays.update(zip(consumers, folded, strict=True))
        for name in consumers:  # what they read is x / s now
            module = name.removesuffix(".weight")
            result.importance[module] = clean_importance(importance.get(module, known[0])) / s**2
            result.scales[module] = s
        result.gains.append(FoldGain(producer.removesuffix(".weight"), chosen, plain_error, error))
    return result


def _sample(weight: mx.array) -> mx.array:
    weight = weight.reshape(-1, weight.shape[-1])
    rows = np.unique(np.linspace(0, weight.shape[0] - 1, min(weight.shape[0], _SAMPLE_ROWS)).astype(np.int32))
    return weight[mx.array(rows)]
