"""Numpy helpers of the tests: bfloat16, which numpy lacks, travels as uint16."""

from __future__ import annotations

import numpy as np


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to the nearest bfloat16, ties to even; not for NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as an array of "float", "half" or "bfloat"."""
    if dtype == "bfloat":
        return to_bfloat16(values)
    return np.ascontiguousarray(values, {"float": np.float32, "half": np.float16}[dtype])


def decode(array: np.ndarray) -> np.ndarray:
    """What ``encode`` made, as float32."""
    return from_bfloat16(array) if array.dtype == np.uint16 else array.astype(np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return decode(encode(values, dtype))
