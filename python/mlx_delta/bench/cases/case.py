"""What a case is, and how its results are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import ops

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# rms(error) / rms(reference). Half types: inputs are rounded before both see them, so one rounding of the output.
BOUNDS = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 4e-3}

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One op on one set of shapes.

    ``make`` draws the arguments for a dtype. ``moved`` says how many bytes the op has to move for them; by default
    every argument and result once. ``real`` marks shapes of a published model, which benches time. ``flops`` counts
    multiplications and additions, where an op has enough of them to matter.

    What tests and benches have to know of an op's arguments: ``states`` take the place of, in this order, its results
    after the first, in place where nobody else holds them; ``over_time`` are [B, T, ..], so that a call is also two
    calls of some tokens each; ``sliced`` are read where they lie in wider rows, and how many dims a row has.
    """

    op: str
    name: str
    make: Callable[[mx.Dtype, np.random.Generator], Arguments]
    moved: Callable[[Arguments, list[mx.array]], int] | None = None
    real: bool = False
    flops: Callable[[Arguments], int] | None = None
    states: tuple[str, ...] = ()
    over_time: tuple[str, ...] = ()
    sliced: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def thinned(self) -> bool:
        """Whether only a part of the results is compared."""
        return False

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, dtype: mx.Dtype) -> Arguments:
        return self.make(dtype, np.random.default_rng(sum(self.id.encode())))

    def run(self, arguments: Arguments) -> list[mx.array]:
        return as_list(getattr(ops, self.op)(**arguments))

    def reference(self, arguments: Arguments) -> list[mx.array]:
        return as_list(getattr(ops, self.op + "_reference")(**arguments))

    def step(self, arguments: Arguments) -> list[mx.array]:
        """``run``, after which ``arguments`` hold the new states and nobody the old ones, as in a decode loop."""
        results = self.run(arguments)
        arguments.update(zip(self.states, results[1 : 1 + len(self.states)], strict=True))
        return results

    def compare(self, arguments: Arguments) -> Iterator[tuple[mx.array, mx.array]]:
        """(found, expected) of each result."""
        yield from zip(self.run(arguments), self.reference(arguments), strict=True)

    def bytes(self, arguments: Arguments, results: list[mx.array]) -> int:
        if self.moved is not None:
            return self.moved(arguments, results)
        flat = [a for value in arguments.values() for a in (value if isinstance(value, list) else [value])]
        return sum(a.nbytes for a in [*flat, *results] if isinstance(a, (mx.array, ops.Matrix)))


def as_list(result: mx.array | tuple[mx.array, ...]) -> list[mx.array]:
    if isinstance(result, mx.array):
        return [result]
    return [array for part in result for array in as_list(part)]


def relative_rms(found: mx.array, expected: mx.array) -> float:
    """rms(found - expected) / rms(expected); NaN if anything is NaN."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    error = mx.sqrt(mx.mean(mx.square(found - expected)))
    return float(error / mx.maximum(mx.sqrt(mx.mean(mx.square(expected))), 1e-30))
