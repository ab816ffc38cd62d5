"""Every specialisation compiles for an NVIDIA GPU, takes what its plan gives, and keeps its values in registers.

In bfloat16; in the other dtypes, which change its loads and stores alone, one of a kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import mlx.core as mx
import pytest

from mlx_delta.bench.cases.launches import specialisations
from nvptx import Kernel, compile_kernel, read_ptx
from nvptx.compiler import constant_symbol
from support.launches import firsts_of_a_kind, threads_of
from support.report import report

THREADGROUP_MEMORY = 32 << 10  # of an Apple GPU
NAMES = [name for name, use in specialisations().items() if use.dtype == mx.bfloat16]
NAMES += [name for dtype in (mx.float32, mx.float16) for name in firsts_of_a_kind(dtype)]


@pytest.fixture(scope="module")
def kernels() -> Iterator[dict[str, Future[Kernel]]]:
    """All of them, under way on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(compile_one, name) for name in NAMES}
        pool.shutdown(cancel_futures=True)


def compile_one(name: str) -> Kernel:
    launch = specialisations()[name].launch
    sizes = {len(launch.buffers): len(launch.params)}
    return compile_kernel(launch.source, name, threads=threads_of(launch), constant_bytes=sizes)


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name: str, kernels: dict[str, Future[Kernel]]) -> None:
    kernel = kernels[name].result()
    entry = read_ptx(kernel.ptx)
    launch = specialisations()[name].launch
    assert entry.name == name
    assert kernel.buffers == tuple(range(len(launch.buffers)))
    assert len(entry.parameters) == len(launch.buffers)
    assert all(parameter.type.startswith(".u64 .ptr .global") for parameter in entry.parameters)
    assert entry.constants == {constant_symbol(len(launch.buffers)): len(launch.params)}
    assert entry.threads == threads_of(launch)
    assert entry.shared <= THREADGROUP_MEMORY
    assert entry.local == 0, "thread memory: an array that is indexed by a value the compiler does not know"
    assert entry.calls == ()
    assert entry.loads
    if re.search(r"^(qmm|attention)_b?float", name) and specialisations()[name].case.real:
        assert entry.loops, "the optimiser has unrolled all: then it moves loads out, and registers spill"
        assert set(entry.wide) <= {"add", "loads", "stores"}, "an inner loop multiplies numbers of 64 bits"
        accesses = entry.wide["loads"] + entry.wide["stores"]
        assert entry.wide["add"] <= accesses, "an address is more than a base and an index of 32 bits"
    if specialisations()[name].case.real:
        widths = ", ".join(f"{count} of {width}" for width, count in sorted(entry.loads.items()))
        report(
            "Loads of device memory in the 9B's kernels, by bytes a thread (PTX; NVIDIA's compiler)",
            f"{specialisations()[name].case.id:44}{name.split('_b')[0]:20}{widths}",
        )
