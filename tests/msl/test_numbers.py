"""Half, bfloat and vector arithmetic, and the math functions."""

from __future__ import annotations

import numpy as np
import pytest

from msl import Library, Output
from msl.arrays import decode, encode, rounded

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
RNG = np.random.default_rng(2)

EXPRESSION = (
    HEADER
    + """
kernel void expression(const device TYPE* a [[buffer(0)]], const device TYPE* b [[buffer(1)]],
                       const device TYPE* c [[buffer(2)]], device TYPE* y [[buffer(3)]],
                       uint i [[thread_position_in_grid]]) {
  y[i] = a[i] * b[i] + c[i];
}
kernel void from_float(const device float* x [[buffer(0)]], device TYPE* y [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
  y[i] = TYPE(x[i]);
}
"""
)


@pytest.mark.parametrize("excess", [False, True])
@pytest.mark.parametrize("dtype", ["half", "bfloat"])
def test_half_types_round_after_each_operation_or_once(dtype: str, excess: bool) -> None:
    a, b, c = (rounded(RNG.standard_normal(512), dtype) for _ in range(3))
    y = encode(np.zeros(512), dtype)
    buffers = [*(encode(x, dtype) for x in (a, b, c)), Output(y)]
    library = Library(EXPRESSION.replace("TYPE", dtype))
    library.launch("expression", buffers, threads=512, threadgroup=64, excess_precision=excess)
    once = rounded((a.astype(np.float64) * b + c).astype(np.float32), dtype)
    twice = rounded(rounded(a * b, dtype) + c, dtype)
    assert (once != twice).any()
    np.testing.assert_array_equal(decode(y), once if excess else twice)


@pytest.mark.parametrize("dtype", ["half", "bfloat"])
def test_what_depends_on_excess_precision_is_seen_in_the_code(dtype: str) -> None:
    assert Library(EXPRESSION.replace("TYPE", dtype)).depends_on_excess_precision()
    in_float = "y[i] = TYPE(float(a[i]) * float(b[i]) + float(c[i]));"
    text = EXPRESSION.replace("y[i] = a[i] * b[i] + c[i];", in_float)
    assert in_float in text
    assert not Library(text.replace("TYPE", dtype)).depends_on_excess_precision()


@pytest.mark.parametrize("dtype", ["half", "bfloat"])
def test_conversion_rounds_to_even(dtype: str) -> None:
    exact = rounded(np.abs(RNG.standard_normal(64)), dtype)
    step = np.spacing(exact.astype(np.float16)).astype(np.float32) if dtype == "half" else exact * 0 + 2.0**-7
    x = np.concatenate([exact + step / 2, [65520.0, 1e38, 0.0, -0.0, 1e-8]]).astype(np.float32)
    y = encode(np.zeros(x.size), dtype)
    with np.errstate(over="ignore"):
        wanted = rounded(x, dtype)
    Library(EXPRESSION.replace("TYPE", dtype)).launch("from_float", [x, Output(y)], threads=x.size, threadgroup=32)
    np.testing.assert_array_equal(decode(y), wanted)


VECTORS = (
    HEADER
    + """
template <typename T>
vec<T, 4> widen(vec<T, 2> a, T b) {
  return vec<T, 4>(a, b, b);
}
kernel void vectors(device float* y [[buffer(0)]], const device uchar4* bytes [[buffer(1)]]) {
  const float4 a = float4(1, 2.0, float2(3.0f, 4.0f));
  const float4 b = widen(a.xy, 9.0f);
  const half4 h = half4(a) * half4(2.0h);
  const float4 c = float4(h) + float4(bytes[0]);
  const uint packed = as_type<uint>(uchar4(1, 2, 3, 4));
  const int4 i = int4(float4(1.9f, -1.9f, 2.5f, -0.5f));
  const float4 results[] = {a, b, c, float4(i), fma(a, b, c), max(a, 2.5f), clamp(a, 1.5f, 3.5f), a.wzyx,
                            float4(float(packed), float(packed >> 24), dot(a, b), 1.0 / 3.0),
                            float4(as_type<float>(0x3f800000u), float(as_type<ushort>(half(1.0f))), 0.0f, 0.0f)};
  for (int k = 0; k < 10; k++) ((device float4*)y)[k] = results[k];
}
"""
)


def test_vectors_and_literals() -> None:
    y = np.zeros((10, 4), np.float32)
    Library(VECTORS).launch(
        "vectors", [Output(y), np.array([10, 20, 30, 255], np.uint8)], threads=1, threadgroup=1, check=True
    )
    a, b = np.array([1, 2, 3, 4.0]), np.array([1, 2, 9, 9.0])
    c = 2 * a + [10, 20, 30, 255]
    packed = 0x04030201
    wanted = [a, b, c, [1, -1, 2, 0], a * b + c, np.maximum(a, 2.5), a.clip(1.5, 3.5), a[::-1]]
    wanted += [[np.float32(packed), 4, a @ b, np.float32(1) / np.float32(3)], [1, 0x3C00, 0, 0]]
    np.testing.assert_array_equal(y, np.array(wanted, np.float32))


UNARY = {
    "exp(x)": np.exp,
    "exp2(x)": np.exp2,
    "log(x)": np.log,
    "log2(x)": np.log2,
    "sqrt(x)": np.sqrt,
    "rsqrt(x)": lambda x: 1 / np.sqrt(x),
    "sin(x)": np.sin,
    "cos(x)": np.cos,
    "tanh(x)": np.tanh,
    "atan2(x, 2.0f)": lambda x: np.arctan2(x, 2),
    "pow(x, 1.5f)": lambda x: x**1.5,
    "floor(x)": np.floor,
    "ceil(x)": np.ceil,
    "rint(x)": np.rint,
    "trunc(x)": np.trunc,
    "fract(x)": lambda x: x - np.floor(x),
    "abs(1.0f - x)": lambda x: np.abs(1 - x),
    "fast::exp(-x)": lambda x: np.exp(-x),
    "precise::rsqrt(x)": lambda x: 1 / np.sqrt(x),
    "metal::precise::log(x)": np.log,
    "fmod(x, 0.75f)": lambda x: np.fmod(x, 0.75),
    "select(x, 7.0f, x > 2.0f)": lambda x: np.where(x > 2, 7, x),
    "mix(x, 1.0f, 0.25f)": lambda x: x + (1 - x) * 0.25,
    "float(isnan(x) || isinf(1.0f / (x - x)))": np.ones_like,
    "float(popcount(uint(x * 1000.0f)))": lambda x: np.array(
        [bin(int(v)).count("1") for v in np.float32(x) * np.float32(1000)]
    ),
    "float(clz(uint(x)) + ctz(8u))": lambda x: np.array([32 - int(v).bit_length() + 3 for v in x]),
    "float(bfloat(x)) + numeric_limits<half>::max()": lambda x: rounded(x, "bfloat") + 65504.0,
}


def test_math_functions() -> None:
    lines = "\n".join(f"  y[{row} * 64 + i] = {expression};" for row, expression in enumerate(UNARY))
    text = f"""{HEADER}
kernel void functions(const device float* in [[buffer(0)]], device float* y [[buffer(1)]],
                      uint i [[thread_position_in_grid]]) {{
  const float x = in[i];
{lines}
}}"""
    x = RNG.uniform(0.1, 5, 64).astype(np.float32)
    y = np.zeros((len(UNARY), 64), np.float32)
    Library(text).launch("functions", [x, Output(y)], threads=64, threadgroup=64)
    for row, (expression, expected) in enumerate(UNARY.items()):
        wanted = expected(x.astype(np.float64))
        np.testing.assert_allclose(y[row], wanted, rtol=2e-6, atol=1e-6, err_msg=expression)


def ulps(x: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """So many units in the last place of a float32."""
    return n * np.spacing(np.abs(x).astype(np.float32)).astype(np.float64)


# Functions of metal::fast, results and the errors that the specification allows, arguments.
FAST = {
    "exp": (np.exp, lambda x, y: ulps(y, 3 + np.floor(np.abs(2 * x))), (-20, 20)),
    "log": (np.log, lambda x, y: np.full_like(x, 2.0**-21), (0.5, 2)),
    "cos": (np.cos, lambda x, y: np.full_like(x, 2.0**-13), (-3, 3)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x, y: ulps(y, 2), (0.1, 5)),
}


@pytest.mark.parametrize("function", FAST)
def test_fast_functions_err_as_much_as_they_may(function: str) -> None:
    """Precise ones do not."""
    exact, allowed, (low, high) = FAST[function]
    text = f"""{HEADER}
kernel void both(const device float* in [[buffer(0)]], device float* y [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) {{
  y[i] = fast::{function}(in[i]);
  y[64 + i] = precise::{function}(in[i]);
}}"""
    x = RNG.uniform(low, high, 64).astype(np.float32)
    y = np.zeros((2, 64), np.float32)
    Library(text).launch("both", [x, Output(y)], threads=64, threadgroup=64)
    wanted = exact(x.astype(np.float64))
    limit = allowed(x.astype(np.float64), wanted)
    fast, precise = np.abs(y - wanted)
    rounding = ulps(wanted, 2)
    assert (fast <= limit + rounding).all()
    assert (fast >= limit - rounding).all()
    assert (precise <= 4 * rounding).all()


UNSET = (
    HEADER
    + """
kernel void unset(device float* y [[buffer(0)]], constant int& n [[buffer(1)]]) {
  float sums[4];
  for (int i = 0; i < n; i++) sums[i] = 0.0f;
  for (int i = 0; i < 4; i++) y[i] = sums[i];
}
"""
)


@pytest.mark.parametrize("check", [False, True])
def test_a_variable_that_is_never_set_is_nan(check: bool) -> None:
    y = np.zeros(4, np.float32)
    Library(UNSET).launch("unset", [Output(y), np.int32(3)], threads=1, threadgroup=1, check=check)
    np.testing.assert_array_equal(y, [0, 0, 0, np.nan])
