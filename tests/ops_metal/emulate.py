"""Runs the plan of an op, launch for launch, through the runner of Metal kernels."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.bench.cases import Case
from msl import Library, Output

LARGE = 2 << 20  # bytes: weights and states; a group's scale and bias are read by the two threads that share it
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}


@cache
def library(source: str) -> Library:
    return Library(source)


def to_numpy(array: mx.array) -> np.ndarray:
    """The array's bits: numpy has no bfloat16."""
    return np.array(mx.contiguous(array).view(_BITS[array.dtype.size]))


def run_plan(
    results: list[mx.array], *, traffic: Counter[str] | None = None, **options: Any
) -> tuple[list[mx.array], _core.Plan]:
    """What the GPU kernels make of an op that has not been evaluated, and the plan.

    traffic: with ``count_bytes``, adds to "unique" the bytes touched in inputs and outputs, each once, and to "large"
        those read of large inputs, as often as they are. options: of Library.launch.
    """
    plan, inputs = _core.plan(results[0])
    outputs = [np.full(r.shape, 2 ** (8 * r.dtype.size) - 1, to_numpy(mx.zeros(1, r.dtype)).dtype) for r in results]
    given = [to_numpy(i) for i in inputs]
    undefined = set(range(len(outputs)))
    for output, index, copy in plan.in_place:
        if copy:  # what the host does where it cannot take the input over
            outputs[output] = given[index].copy()
            undefined.discard(output)
    scratch = [np.full(n, 255, np.uint8) for n in plan.scratch_bytes]
    written: set[int] = set()
    for launch in plan.launches:
        buffers: list[Any] = []
        for role, index in launch.buffers:
            if role == "input":
                buffers.append(given[index])
            elif role == "output":
                buffers.append(Output(outputs[index]) if index in undefined else outputs[index])
            else:
                buffers.append(scratch[index] if index in written else Output(scratch[index]))
        result = library(launch.source).launch(
            launch.kernel,
            [*buffers, launch.params],
            threadgroups=launch.threadgroups,
            threadgroup=launch.threads,
            **options,
        )
        if traffic is not None:
            for (role, index), moved in zip(launch.buffers, result.traffic.values(), strict=False):
                if role != "scratch":
                    traffic["unique"] += moved.unique_read + moved.unique_written
                if role == "input" and given[index].nbytes >= LARGE:
                    traffic["large"] += moved.read
        written |= {index for role, index in launch.buffers if role == "scratch"}
    return [mx.array(o).view(r.dtype) for o, r in zip(outputs, results, strict=True)], plan


def emulate(case: Case, dtype: mx.Dtype, **options: Any) -> list[mx.array]:
    """A case's results by the GPU kernels."""
    return run_plan(case.run(case.arguments(dtype)), **options)[0]
