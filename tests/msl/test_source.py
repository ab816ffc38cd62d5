"""How sources are read and rewritten: includes, macros, constants, threadgroup variables; and strict compiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msl import CompileError, LaunchError, Library, Output, SourceError, strict_compile
from msl.address_spaces import without_address_space

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
KERNEL = "kernel void f(device float* y [[buffer(0)]]) {\n%s\n}\n"

CONSTANTS = (
    HEADER
    + """
constant bool doubled [[function_constant(0)]];
constant int width [[function_constant(1)]];
constant float bias [[function_constant(7)]];
constant bool unused [[function_constant(9)]];
constant float offset = is_function_constant_defined(bias) ? bias : -1.0f;

template <typename T>
[[kernel]] void scale(const device T* x [[buffer(0)]], device float* y [[buffer(1)]],
                      const device float* extra [[buffer(2), function_constant(doubled)]],
                      uint i [[thread_position_in_grid]]) {
  threadgroup float buffer[64];
  buffer[i] = float(x[i % uint(width)]) + offset;
  if (doubled) buffer[i] = 2.0f * buffer[i] + extra[0];
  y[i] = buffer[i];
}
#define INSTANTIATE(type) \\
  template [[host_name("scale_" #type)]] [[kernel]] decltype(scale<type>) scale<type>;
INSTANTIATE(float)
INSTANTIATE(int)
"""
)


def scale(constants: dict[int, bool | int | float], extra: np.ndarray | None = None) -> np.ndarray:
    y = np.zeros(64, np.float32)
    x = np.arange(64, dtype=np.int32)
    library = Library(CONSTANTS)
    library.launch("scale_int", [x, Output(y), extra], threads=64, threadgroup=64, constants=constants, check=True)
    return y


def test_function_constants_and_instances_made_by_a_macro() -> None:
    assert Library(CONSTANTS).kernels == ["scale_float", "scale_int"]
    i = np.arange(64)
    np.testing.assert_array_equal(scale({0: False, 1: 64}), i - 1)
    np.testing.assert_array_equal(scale({0: False, 1: 5, 7: 0.25}), i % 5 + 0.25)
    np.testing.assert_array_equal(scale({0: True, 1: 64, 7: 0}, np.array([100], np.float32)), 2 * i + 100)


def test_function_constants_that_are_missing_or_unknown() -> None:
    with pytest.raises(SourceError, match=r"function constant 1 \('width'\) has no value, and the kernel uses it"):
        scale({0: False})
    with pytest.raises(SourceError, match=r"function constants \[2\] are not in the source"):
        scale({0: False, 1: 1, 2: 1})


def test_includes_are_found_once_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    inner = tmp_path / "deep"
    inner.mkdir()
    (inner / "b.h").write_text("#pragma once\ninline float twice(float x) { return 2.0f * x; }\n")
    (tmp_path / "a.h").write_text(
        '#include <metal_math>\n#include "deep/b.h"\n\ninline void hit(device float* y) {\n  y[64] = 1.0f;\n}\n'
    )
    text = '#include "a.h"\n#include "deep/b.h"\n' + KERNEL % "  y[0] = twice(2.0f);\n  hit(y);"
    with pytest.raises(LaunchError) as error:
        Library(text, includes=[tmp_path]).launch(
            "f", [Output(np.zeros(64, np.float32))], threads=1, threadgroup=1, check=True
        )
    assert error.value.findings[0].where.endswith("a.h:5:9")
    with pytest.raises(SourceError, match=r"kernel.metal:1: 'a.h' is neither a header of Metal nor in \[\]"):
        Library(text)


def test_threadgroup_variables_belong_to_kernels() -> None:
    text = "inline void f() {\n  threadgroup float x[4];\n}\n" + KERNEL % "y[0] = 1.0f;"
    with pytest.raises(SourceError, match=r"kernel.metal:2: threadgroup variable 'x\[4\]' is outside a kernel"):
        Library(text).launch("f", [Output(np.zeros(1, np.float32))], threads=1, threadgroup=1)


def test_a_cast_that_would_reinterpret_is_refused() -> None:
    text = HEADER + "kernel void g(device float4* y [[buffer(0)]]) {\n  y[0] = (float4)int4(1);\n}\n"
    with pytest.raises(SourceError, match=r"kernel.metal:4: '\(float4\)x' converts in Metal .*, write float4\(x\)"):
        Library(text).launch("g", [Output(np.zeros(4, np.float32))], threads=1, threadgroup=1)


def test_there_is_no_double() -> None:
    with pytest.raises(SourceError, match=r"kernel.metal:2: Metal has no double"):
        Library(KERNEL % "y[0] = float(double(1));").launch("f", [np.zeros(1)], threads=1, threadgroup=1)


def test_address_spaces_do_not_mix() -> None:
    text = "kernel void g(device float* y [[buffer(0)]]) {\n  thread float* x = y;\n  x[0] = 1.0f;\n}\n"
    with pytest.raises(CompileError, match=r"kernel.metal:2:\d+: error: .*'float \*' with .*'device float \*'"):
        Library(text).launch("g", [Output(np.zeros(1, np.float32))], threads=1, threadgroup=1)


def test_an_attribute_that_is_not_emulated() -> None:
    text = "kernel void g(device float* y [[buffer(0)]], uint i [[amplification_id]]) { y[i] = 1.0f; }"
    with pytest.raises(SourceError, match=r"kernel 'g': parameter 'i' has attribute \[\[amplification_id\]\]"):
        Library(text).launch("g", [Output(np.zeros(1, np.float32))], threads=1, threadgroup=1)


STRICT = (
    HEADER + "kernel void g(device half* y [[buffer(0)]], constant int& n [[buffer(1)]],"
    " uint i [[thread_position_in_grid]]) {\n%s\n}\n"
)


def test_a_strict_compile_is_clean_or_says_why() -> None:
    clean = "  threadgroup float x[4];\n  x[i % 4] = float(n);\n  y[i] = half(simd_sum(x[i % 4]) * 0.5f);"
    assert strict_compile(STRICT % clean) == []
    diagnostics = strict_compile(STRICT % "  short s = n;\n  if (i < n) y[i] = half(s);\n  int unused;")
    assert [(d.file, d.line, d.severity) for d in diagnostics] == [
        ("kernel.metal", line, "warning") for line in (4, 5, 6)
    ]
    assert "implicit conversion loses integer precision" in diagnostics[0].message
    assert strict_compile(STRICT % "  device float* z = y;\n  y[i] = half(z[0]) * n;")[0].severity == "error"


def test_a_strict_compile_finds_a_float_that_becomes_a_bfloat_unasked() -> None:
    text = STRICT.replace("half", "bfloat") % "  y[i] = y[i] * float(n);"
    assert ["to 'bfloat'" in d.message for d in strict_compile(text)] == [True]
    assert strict_compile(text.replace("y[i] * float(n)", "bfloat(float(y[i]) * float(n))")) == []


def test_a_strict_compile_finds_what_only_a_later_metal_has() -> None:
    (diagnostic,) = strict_compile(STRICT % "  if constexpr (sizeof(n) == 4) y[i] = half(n);")
    assert "C++17" in diagnostic.message


def test_templates_are_compiled_strictly_as_they_are_instantiated() -> None:
    text = CONSTANTS.replace("float(x[i % uint(width)])", "x[i % uint(width)]")
    diagnostics = Library(text).strict_compile(constants={0: False, 1: 4})
    assert len(diagnostics) == 1
    assert "to 'float' may lose precision" in diagnostics[0].message


def test_a_pointer_that_is_followed_is_none_of_a_declaration() -> None:
    assert not list(without_address_space("inline int f(thread int* x) {\n  return *x;\n}"))


@pytest.mark.parametrize(
    "text",
    [
        "inline void f(float& x) {\n}",
        "inline void f(device float* x, const Row& row) {\n}",
        "inline void f(float (&x)[4], int n) {\n}",
        "inline void f(thread float& x) {\n  const float* p = &x;\n}",
        "inline void f(device float* x) {\n  f((int*)x);\n}",
        "struct S {\n  int n;\n\n  int twice() const {\n    return 2 * n;\n  }\n};",
    ],
)
def test_a_strict_compile_refuses_one_without_an_address_space(text: str) -> None:
    (found,) = (each for each in strict_compile(text) if "address space" in each.message)
    assert found.severity == "error"
    assert next(iter(without_address_space(text))) in found.message
