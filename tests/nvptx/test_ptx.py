"""What is read off a PTX text, and what the compiler refuses."""

from __future__ import annotations

import pytest

from msl import CompileError, SourceError
from nvptx import compile_kernel, read_ptx

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


def kernel(body: str, parameters: str = "uint i [[thread_position_in_grid]]") -> str:
    buffers = "const device float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& n [[buffer(2)]]"
    return f"{HEADER}kernel void f({buffers}, {parameters}) {{ {body} }}"


def compiled(text: str) -> str:
    return compile_kernel(text, "f", threads=64, constant_bytes={2: 4}).ptx


def test_what_an_entry_takes() -> None:
    entry = read_ptx(compiled(kernel("if (i < n) y[i] = x[i] + simd_sum(x[i]);")))
    assert (entry.name, entry.threads, len(entry.parameters)) == ("f", 64, 2)
    assert entry.constants == {"msl_constant_2": 4}
    assert (entry.local, entry.shared, entry.calls) == (0, 0, ())
    assert dict(entry.loads) == {4: 1}
    assert entry.instructions > 10


def test_vector_loads_are_told_from_others() -> None:
    wide = read_ptx(compiled(kernel("y[i] = dot(((const device float4*)x)[i], float4(float(x[i])));")))
    assert dict(wide.loads) == {16: 1, 4: 1}


def test_loops_are_counted_that_are_left_and_load() -> None:
    def loops(body: str) -> int:
        return read_ptx(compiled(kernel(f"float sum = 0; {body} y[i] = sum;"))).loops

    keep = '_Pragma("clang loop unroll(disable)")'
    assert loops(f"{keep} for (uint j = 0; j < 4; j++) sum += x[i + 64 * j * n];") == 1
    assert loops("for (uint j = 0; j < 4; j++) sum += x[i + 64 * j * n];") == 0
    assert loops(f"{keep} for (uint j = 0; j < n; j++) sum = sum * 3 + j;") == 0


def test_wide_arithmetic_in_an_inner_loop_is_seen() -> None:
    def wide(index: str) -> dict[str, int]:
        loop = f'_Pragma("clang loop unroll(disable)") for (uint j = 0; j < n; j++) sum += x[{index}];'
        return dict(read_ptx(compiled(kernel(f"float sum = 0; {loop} y[i] = sum;"))).wide)

    narrow = wide("(i ^ j) * n")
    assert narrow["loads"] == 1
    assert set(narrow) <= {"loads", "add"}
    assert "mul" in wide("size_t(i ^ j) * size_t(j ^ 77u) * size_t(n ^ j)")


def test_memory_that_is_not_registers_is_seen() -> None:
    spilled = kernel("float own[8] = {}; for (uint j = 0; j < n; j++) own[uint(x[j]) % 8] += x[j]; y[i] = own[i % 8];")
    assert read_ptx(compiled(spilled)).local >= 32
    shared = kernel("threadgroup float tile[64]; tile[i] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup);"
                    "y[i] = tile[63 - i];")  # fmt: skip
    assert read_ptx(compiled(shared)).shared == 256


def test_helpers_are_inlined() -> None:
    helper = "inline void add(thread float (&own)[4], float x) { for (int j = 0; j < 4; j++) own[j] += x; }\n"
    text = kernel("float own[4] = {}; add(own, x[i]); add(own, x[n]); y[i] = own[0] * own[3];")
    entry = read_ptx(compiled(text.replace("kernel void", helper + "kernel void")))
    assert (entry.calls, entry.local) == ((), 0)


def test_what_is_refused() -> None:
    with pytest.raises(CompileError, match="undeclared identifier 'q'"):
        compiled(kernel("y[i] = q;"))
    with pytest.raises(SourceError, match=r"kernel 'f': parameter 'i' has attribute \[\[amplification_id\]\]"):
        compiled(kernel("y[i] = x[i];", "uint i [[amplification_id]]"))
    with pytest.raises(SourceError, match="threadgroup argument 'i' is not emulated"):
        compiled(kernel("y[0] = i[0];", "threadgroup float* i [[threadgroup(0)]]"))
    with pytest.raises(ValueError, match="constant_bytes: expected the size of argument 'n' at 2"):
        compile_kernel(kernel("y[i] = x[i];"), "f", threads=64, constant_bytes={})
    with pytest.raises(ValueError, match="expected one entry in the PTX, found 0"):
        read_ptx(".version 8.0")
