"""The roofline: operations a second against operations a byte, under what memory and arithmetic allow.

A point below the slope is what an op loses to the memory it has to read; Williams, Waterman and Patterson (2009).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlx_delta import _core


@dataclass(frozen=True)
class Point:
    """flops: operations, nbytes: bytes to move, seconds: that took."""

    label: str
    flops: float
    nbytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        return self.flops / self.nbytes

    @property
    def speed(self) -> float:
        return self.flops / self.seconds


def multiply_add_flops(repeats: int = 5) -> float:
    """Operations a second of float32 multiply-adds in registers, on all threads, the best of ``repeats``."""
    _core.multiply_add(1000)
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        operations = _core.multiply_add(1_000_000)
        speeds.append(operations / (time.perf_counter() - start))
    return max(speeds)
