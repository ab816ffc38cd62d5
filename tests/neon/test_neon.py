"""The NEON kernels (and the portable ones as clang compiles them), cross-compiled; qemu-user runs them, or aarch64.

Every small case of the registry, in three dtypes, against its float32 reference. Nothing may be read or written beyond
the end of a buffer: an unmapped page is there.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import aarch64
import mlx.core as mx
import pytest
from calls import Call

from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, relative_rms

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
NATIVE = (platform.system(), platform.machine()) == ("Linux", "aarch64")
emulated = pytest.mark.skipif(not (QEMU or NATIVE), reason="no qemu-aarch64 on PATH (Debian's qemu-user)")
SMALL = [case for case in CASES if not case.real]
ROWS = (1, 2, 5, 16)


def run(isa: str, calls: list[Call], folder: Path) -> list[list[mx.array]]:
    """The results of each call, by the kernels of an instruction set."""
    (folder / "calls").write_bytes(b"".join(call.encoded() for call in calls))
    program = [str(aarch64.program())] if NATIVE else [str(QEMU), str(aarch64.program())]
    command = [*program, isa, str(folder / "calls"), str(folder / "results")]
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
    assert aarch64.program().read_bytes()[:5] == b"\x7fELF\x02"
    assert aarch64.compiled(aarch64.CPU / "runtime" / "threads.cpp").stat().st_size > 0
    assert aarch64.compiled(aarch64.CPU / "runtime" / "isa.cpp", "-DMLX_DELTA_ARM64").stat().st_size > 0


@cache
def references(op: str, dtype: mx.Dtype) -> list[list[mx.array]]:
    return [case.reference(case.arguments(dtype)) for case in SMALL if case.op == op]


@emulated
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("op", sorted({case.op for case in SMALL}))
@pytest.mark.parametrize("isa", aarch64.ISA_FLAGS)
def test_matches_the_reference(isa: str, op: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    cases = [case for case in SMALL if case.op == op]
    found = run(isa, [Call(case, case.arguments(dtype)) for case in cases], tmp_path)
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
def test_qmm_rows_are_identical_whatever_the_batch(isa: str, case: str, tmp_path: Path) -> None:
    qmm = next(c for c in SMALL if c.id == f"qmm-{case}")
    arguments = qmm.arguments(mx.bfloat16)
    x = mx.random.normal((ROWS[-1], arguments["x"].shape[1]), key=mx.random.key(7)).astype(mx.bfloat16)
    found = run(isa, [Call(qmm, {**arguments, "x": x[:M]}) for M in ROWS], tmp_path)
    for M, (part,) in zip(ROWS, found, strict=True):
        assert mx.array_equal(part, found[-1][0][:M])
