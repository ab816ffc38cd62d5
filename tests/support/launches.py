"""Every kernel that the cases need, as the Launch that plans it: what there is to compile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.bench.cases import CASES, DTYPES, Case
from msl import Library


@dataclass(frozen=True)
class Use:
    """The first case, and its dtype, that a specialisation is needed for."""

    case: Case
    dtype: mx.Dtype
    launch: _core.Launch


class Zeros(np.random.Generator):
    """Draws nothing but zeros: a plan depends on shapes alone, and lm_head has a thousand million weights."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64())

    def standard_normal(self, size: object = None, *_: object, **__: object) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size, np.float32)  # type: ignore[call-overload]

    def integers(self, low: int, *_: object, size: object, dtype: type = np.int64, **__: object) -> np.ndarray:  # type: ignore[override]
        return np.full(size, low, dtype)  # type: ignore[call-overload]


@cache
def specialisations() -> dict[str, Use]:
    """By the kernel's name. The 9B's cases in bfloat16 only, as it runs."""
    found: dict[str, Use] = {}
    for case, dtype in uses():
        try:
            plan, _ = _core.plan(case.run(case.make(dtype, Zeros()))[0])
        except ValueError:  # no kernel for it: tests/ops_metal says which cases those are
            continue
        for launch in plan.launches:
            found.setdefault(launch.kernel, Use(case, dtype, launch))
    return found


def uses() -> Iterable[tuple[Case, mx.Dtype]]:
    real = [(case, mx.bfloat16) for case in CASES if case.real]
    return real + [(case, dtype) for dtype in reversed(DTYPES.values()) for case in CASES if not case.real]


def library(source: str) -> Library:
    """Where a launch's kernel is: one for all that differ in the instantiation alone, with which a source ends."""
    text, instance = source.rsplit("\ntemplate", 1)
    found = _library(text)
    found.instantiate("template" + instance)
    return found


@cache
def _library(text: str) -> Library:
    return Library(text)


def threads_of(launch: _core.Launch) -> int:
    """Of a threadgroup."""
    x, y, z = launch.threads
    return int(x * y * z)
