"""The NEON kernels, cross-compiled; qemu-user runs them, or aarch64.

Every small case of the registry, in three dtypes, against its float32 reference. Nothing may be read or written beyond
the end of a buffer: an unmapped page is there.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import aarch64
import mlx.core as mx
import pytest
from calls import Call

from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, relative_rms

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
emulated = pytest.mark.skipif(
    not ((QEMU or aarch64.NATIVE) and aarch64.libraries()),
    reason="no qemu-aarch64 on PATH, or no C library of aarch64 (Debian's qemu-user and libc6-arm64-cross)",
)
SMALL = [case for case in CASES if not case.real]
ROWS = (1, 2, 5, 16)


Run = Callable[[str, list[Call]], list[list[mx.array]]]


@pytest.fixture(scope="module")
def program() -> Path:
    """That runs calls. A fixture, for pytest keeps what it raises: kernels that do not compile are compiled once."""
    return aarch64.program()


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    """The results of each call, by the kernels of an instruction set."""
    return partial(run_calls, program, tmp_path)


def run_calls(program: Path, folder: Path, isa: str, calls: list[Call]) -> list[list[mx.array]]:
    (folder / "calls").write_bytes(b"".join(call.encoded() for call in calls))
    emulator = [] if aarch64.NATIVE else [str(QEMU), "-L", str(Path(aarch64.libraries()[0]).parent.parent)]
    command = [*emulator, str(program), isa, str(folder / "calls"), str(folder / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{isa} ended with {done.returncode}: {done.stderr}"
    content = memoryview((folder / "results").read_bytes())
    found = []
    for call in calls:
        results, content = call.decode(content)
        found.append(results)
    assert not content
    return found


def test_kernels_compile_for_aarch64() -> None:
    """And the files that are compiled once, where they differ by processor."""
    assert all(path.read_bytes()[:5] == b"\x7fELF\x02" for path in aarch64.objects())
    assert aarch64.compiled(aarch64.CPU / "runtime" / "threads.cpp").stat().st_size > 0
    assert aarch64.compiled(aarch64.CPU / "runtime" / "isa.cpp", "-DMLX_DELTA_ARM64").stat().st_size > 0


@cache
def references(op: str, dtype: mx.Dtype) -> list[list[mx.array]]:
    return [case.reference(case.arguments(dtype)) for case in SMALL if case.op == op]


def runs() -> list[Any]:
    """Every set's own kernels in each dtype; those that it takes from another set, that it does, in one."""
    return [
        pytest.param(isa, op, dtype, id=f"{isa}-{op}-{name}")
        for isa in aarch64.ISA_FLAGS
        for op in sorted({case.op for case in SMALL})
        for name, dtype in DTYPES.items()
        if isa not in aarch64.BASE or f"{op}.cpp" in aarch64.OWN or dtype == mx.bfloat16
    ]


@emulated
@pytest.mark.parametrize(("isa", "op", "dtype"), runs())
def test_matches_the_reference(isa: str, op: str, dtype: mx.Dtype, run: Run) -> None:
    cases = [case for case in SMALL if case.op == op]
    found = run(isa, [Call(case, case.arguments(dtype)) for case in cases])
    wrong = {}
    for case, results, expected in zip(cases, found, references(op, dtype), strict=True):
        errors = [relative_rms(result, reference) for result, reference in zip(results, expected, strict=True)]
        if not all(error <= BOUNDS[dtype] for error in errors):
            wrong[case.id] = errors
    assert not wrong


@emulated
@pytest.mark.parametrize(
    "case", ["b5g32", "plain-bfloat16", *(f"b{b}g{g}m4" for b in (2, 3, 4, 5, 6, 8) for g in (64, 128))]
)
@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_qmm_rows_are_identical_whatever_the_batch(isa: str, case: str, run: Run) -> None:
    qmm = next(c for c in SMALL if c.id == f"qmm-{case}")
    arguments = qmm.arguments(mx.bfloat16)
    x = mx.random.normal((ROWS[-1], arguments["x"].shape[1]), key=mx.random.key(7)).astype(mx.bfloat16)
    found = run(isa, [Call(qmm, {**arguments, "x": x[:M]}) for M in ROWS])
    for M, (part,) in zip(ROWS, found, strict=True):
        assert mx.array_equal(part, found[-1][0][:M])
