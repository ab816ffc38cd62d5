"""Each kind of bug is found where it is, in the order threads take and in reverse; correct twins are not accused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from msl import Finding, LaunchError, Library, Output

SOURCE = Path(__file__).with_name("seeded_bugs.metal")
TEXT = SOURCE.read_text()
LIBRARY = Library(TEXT, filename=SOURCE.name)


def expectations() -> dict[str, list[tuple[str, int]]]:
    """For each kernel, the kinds and lines of the findings it must give."""
    found: dict[str, list[tuple[str, int]]] = {}
    name = ""
    for number, line in enumerate(TEXT.splitlines(), start=1):
        if kernel := re.match(r"kernel void (\w+)\(", line):
            name = kernel[1]
            found[name] = []
        if marker := re.search(r"// finds: ([\w -]+)", line):
            found.setdefault(name, []).append((marker[1], number))
    return {name: marks for name, marks in found.items() if name}


EXPECTED = expectations()
CLEAN = [name for name, marks in EXPECTED.items() if not marks]
BUGGY = [name for name, marks in EXPECTED.items() if marks]


def launch(name: str, order: str = "forward", check: bool = True, **options: bool) -> np.ndarray:
    dtype = np.uint32 if name.startswith("atomic") else np.float32
    y = np.zeros(128, dtype)
    x = np.arange(128).astype(dtype)
    LIBRARY.launch(name, [x, Output(y)], threads=128, threadgroup=64, order=order, check=check, **options)
    return y


def findings(name: str, **options: str | bool) -> list[Finding]:
    with pytest.raises(LaunchError) as error:
        launch(name, **options)
    return error.value.findings


def test_there_is_one_of_each_kind() -> None:
    kinds = {kind for marks in EXPECTED.values() for kind, _ in marks}
    assert kinds == {"race", "out of bounds", "uninitialised", "misaligned", "divergence", "error", "read-only"}
    assert len(BUGGY) >= 25
    assert len(CLEAN) >= 10


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("name", BUGGY)
def test_bug_is_found(name: str, order: str) -> None:
    found = findings(name, order=order)
    for kind, line in EXPECTED[name]:
        named = [f for f in found if f.kind == kind and f"{SOURCE.name}:{line}:" in str(f)]
        assert named, f"no {kind} at line {line} among: " + "; ".join(map(str, found))


@pytest.mark.parametrize("name", CLEAN)
def test_correct_kernel_is_not_accused(name: str) -> None:
    forward = launch(name)
    assert forward.tobytes() == launch(name, order="reverse").tobytes()
    assert forward.tobytes() == launch(name, check=False).tobytes()


def test_a_finding_names_thread_and_place() -> None:
    (finding,) = findings("read_past_end")
    assert (finding.buffer, finding.offset) == ("x", 512)
    assert (finding.threadgroup, finding.thread) == ((1, 0, 0), (63, 0, 0))
    assert finding.message == "read of 4 bytes at byte 512 of 'x' of 512 bytes"


def test_a_race_names_both_accesses() -> None:
    kernel_line = next(n for n, line in enumerate(TEXT.splitlines(), 1) if "void no_barrier" in line)
    race = next(f for f in findings("no_barrier") if "read not ordered" in f.message)
    assert race.line == kernel_line + 3
    assert race.other.startswith(f"{SOURCE.name}:{kernel_line + 2}:")
    assert race.buffer == "tile"


def test_far_out_of_bounds_names_its_buffer_and_offset() -> None:
    (finding,) = findings("read_far_away")
    assert (finding.buffer, finding.offset) == ("x", 0x7FFFFF00 * 4)


@pytest.mark.parametrize("name", ["read_past_end", "read_far_away", "write_past_end"])
def test_overrun_is_caught_without_check_mode(name: str) -> None:
    (finding,) = findings(name, check=False)
    assert finding.kind == "out of bounds"
    assert finding.buffer in ("x", "y")


SAME_VALUE = """
#include <metal_stdlib>
using namespace metal;
kernel void store(device float* y [[buffer(0)]], constant float& step [[buffer(1)]],
                  device float* seen [[buffer(2)]], uint t [[thread_index_in_threadgroup]]) {
  seen[t] = y[0];
  threadgroup_barrier(mem_flags::mem_none);
  y[0] = 7.0f + step * float(t);
}
"""


def test_writes_of_one_value_may_be_allowed() -> None:
    library = Library(SAME_VALUE)
    y, seen = np.full(1, 7, np.float32), np.zeros(64, np.float32)

    def store(step: float, allow: bool) -> None:
        buffers = [y, np.float32(step), Output(seen)]
        library.launch("store", buffers, threads=64, threadgroup=64, check=True, allow_same_value_writes=allow)

    store(0.0, allow=True)
    assert set(seen) == {7}
    with pytest.raises(LaunchError, match="write not ordered after a read"):
        store(0.0, allow=False)
    with pytest.raises(LaunchError, match="write of another value"):
        store(1.0, allow=True)
