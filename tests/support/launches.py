"""The kernels of launches: which of them tests compile, and their libraries, made once for all tests."""

from __future__ import annotations

import re
from functools import cache

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.bench.cases.launches import specialisations
from msl import Library


def library(source: str) -> Library:
    """Where a launch's kernel is: one for all that differ in the instantiation alone, with which a source ends."""
    text, instance = source.rsplit("\ntemplate", 1)
    found = _library(text)
    found.instantiate("template" + instance)
    return found


@cache
def _library(text: str) -> Library:
    return Library(text)


@cache
def firsts_of_a_kind(dtype: mx.Dtype) -> dict[str, str]:
    """Kernel -> id of its case: in ``dtype``, of all that differ in sizes and widths alone, the first.

    All of them are compiled and run in bfloat16, and run in float32, of which a load has other numbers of values. In
    float16, which has bfloat16's size, what is left to differ is the conversion at loads and stores: all between is
    float (test_half_types_may_be_computed_with_excess_precision), and does not depend on a width.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, use in specialisations().items():
        if use.dtype == dtype and not use.case.real:
            found.setdefault(re.sub(r"_\d+", "", name), (name, use.case.id))
    return dict(found.values())


def threads_of(launch: _core.Launch) -> int:
    """Of a threadgroup."""
    x, y, z = launch.threads
    return int(x * y * z)
