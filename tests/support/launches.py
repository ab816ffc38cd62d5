"""The libraries of launches, compiled for the runner of Metal kernels once for all tests."""

from __future__ import annotations

from functools import cache

from mlx_delta import _core
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


def threads_of(launch: _core.Launch) -> int:
    """Of a threadgroup."""
    x, y, z = launch.threads
    return int(x * y * z)
