"""Where a stage runs: on this machine's GPU, on its CPU, or as GPU kernels emulated on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_delta.errors import ArgumentError

WAYS = ("gpu", "cpu", "emulate")
_TESTS = Path(__file__).resolve().parents[3] / "tests"  # of a checkout


@dataclass(frozen=True)
class Way:
    """evaluate: the results of an op's unevaluated ones."""

    name: str
    evaluate: Callable[[Sequence[mx.array]], list[mx.array]]


def way_named(name: str) -> Way:
    if name == "emulate":
        return Way(name, _emulator())
    mx.set_default_device(mx.Device(mx.gpu if name == "gpu" else mx.cpu))
    return Way(name, _evaluated)


def way_of_this_machine(emulate: bool) -> str:
    """Raises: ArgumentError where there is no emulator."""
    if emulate:
        _emulator()
        return "emulate"
    return "gpu" if mx.metal.is_available() else "cpu"


def _evaluated(results: Sequence[mx.array]) -> list[mx.array]:
    mx.eval(*results)
    return list(results)


def _emulator() -> Callable[[Sequence[mx.array]], list[mx.array]]:
    if not (_TESTS / "msl").is_dir():
        raise ArgumentError(
            f"emulate: expected a checkout of the sources, whose tests have the emulator, found no {_TESTS}"
        )
    for folder in (_TESTS, _TESTS / "ops_metal"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    from emulate import run_plan

    mx.set_default_device(mx.Device(mx.cpu))
    return lambda results: list(run_plan(list(results))[0])
