"""Runs the plan of an op, launch for launch, through the runner of Metal kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.bench.cases import Case
from msl import Output, Traffic
from support.launches import library

LARGE = 2 << 20  # bytes: weights and states; a group's scale and bias are read by the two threads that share it
CACHED = 128 << 10  # bytes: less is what all threadgroups read, activations and norms, and stays in caches
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def to_numpy(array: mx.array) -> np.ndarray:
    """The array's bits: numpy has no bfloat16."""
    return np.array(mx.contiguous(array).view(_BITS[array.dtype.size]))


def run_plan(results: list[mx.array], **options: Any) -> tuple[list[mx.array], _core.Plan]:
    """What the GPU kernels make of an op that has not been evaluated, and the plan. options: of Library.launch."""
    return run_and_count(results, None, **options)


def counted(results: list[mx.array]) -> tuple[list[mx.array], Counter[str]]:
    """What the GPU kernels make of an op, bytes that they move, and the number of "launches".

    "touched": of inputs and outputs, each once. "streamed": inputs of CACHED bytes or more, as often as threadgroups
    read them, smaller ones once, and all that is written to outputs. "repeated": accesses to inputs of LARGE bytes or
    more, above one a byte. "scratch": what launches leave for one another, written and read.
    """
    traffic: Counter[str] = Counter()
    found, _ = run_and_count(results, traffic, count_bytes=True)
    return found, traffic


def run_and_count(
    results: list[mx.array], traffic: Counter[str] | None, **options: Any
) -> tuple[list[mx.array], _core.Plan]:
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
            traffic["launches"] += 1
            for (role, index), moved in zip(launch.buffers, result.traffic.values(), strict=False):
                add(traffic, role, given[index].nbytes if role == "input" else 0, moved)
        written |= {index for role, index in launch.buffers if role == "scratch"}
        undefined -= {index for role, index in launch.buffers if role == "output"}  # later ones may write the rest
    return [mx.array(o).view(r.dtype) for o, r in zip(outputs, results, strict=True)], plan


def add(traffic: Counter[str], role: str, nbytes: int, moved: Traffic) -> None:
    """One buffer of one launch."""
    if role == "scratch":
        traffic["scratch"] += moved.unique_read + moved.written
        return
    traffic["touched"] += moved.unique_read + moved.unique_written
    traffic["streamed"] += moved.written + (moved.read_by_threadgroups if nbytes >= CACHED else moved.unique_read)
    traffic["repeated"] += moved.read - moved.unique_read if nbytes >= LARGE else 0


def emulate(case: Case, dtype: mx.Dtype, **options: Any) -> list[mx.array]:
    """A case's results by the GPU kernels."""
    return run_plan(case.run(case.arguments(dtype)), **options)[0]
