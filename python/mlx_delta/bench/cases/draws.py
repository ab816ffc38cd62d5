"""Inputs of cases, drawn from a generator."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_delta import ops


def normal(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float32, scale: float = 1.0) -> mx.array:
    return mx.array((scale * rng.standard_normal(shape)).astype(np.float32)).astype(dtype)


def quantized(
    rng: np.random.Generator, N: int, K: int, bits: int, group_size: int = 64, dtype: mx.Dtype = mx.bfloat16
) -> ops.Matrix:
    """Random packed words with plausible scales, of dtype: no float matrix is made on the way."""
    words = mx.array(rng.integers(0, 2**32, size=(N, K * bits // 32), dtype=np.uint32))
    scales = (0.02 / 2**bits) * (1 + 0.5 * normal(rng, N, K // group_size))
    biases = -scales * 2 ** (bits - 1)
    return ops.Matrix.affine(words, scales.astype(dtype), biases.astype(dtype), bits, group_size)


def plain(rng: np.random.Generator, N: int, K: int, dtype: mx.Dtype) -> ops.Matrix:
    return ops.Matrix.plain(normal(rng, N, K, dtype=dtype, scale=K**-0.5))


def token_mask(rng: np.random.Generator, B: int, T: int) -> mx.array:
    """Left padding of random lengths, and one hole."""
    mask = np.arange(T) >= rng.integers(0, max(1, T // 2), size=(B, 1))
    mask[0, T // 2] = False
    return mx.array(mask)


class Zeros(np.random.Generator):
    """Draws nothing but zeros: a plan depends on shapes alone, and lm_head has a thousand million weights."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64())

    def standard_normal(self, size: object = None, *_: object, **__: object) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size, np.float32)  # type: ignore[call-overload]

    def integers(self, low: int, *_: object, size: object, dtype: type = np.int64, **__: object) -> np.ndarray:  # type: ignore[override]
        return np.full(size, low, dtype)  # type: ignore[call-overload]
