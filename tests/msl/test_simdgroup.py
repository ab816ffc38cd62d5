"""Simdgroup operations, shuffles, barriers and matrices give what Metal's specification says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from msl import LaunchError, Library, Output
from msl.arrays import decode, encode, rounded

LANES = np.arange(32)
RNG = np.random.default_rng(0)

# expression on x and lane -> what it gives for a row of 32 values
OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "simd_sum(x)": lambda x: np.full(32, x.sum()),
    "simd_product(x)": lambda x: np.full(32, x.prod()),
    "simd_max(x)": lambda x: np.full(32, x.max()),
    "simd_min(x)": lambda x: np.full(32, x.min()),
    "simd_or(x)": lambda x: np.full(32, np.bitwise_or.reduce(x)),
    "simd_and(x)": lambda x: np.full(32, np.bitwise_and.reduce(x)),
    "simd_xor(x)": lambda x: np.full(32, np.bitwise_xor.reduce(x)),
    "quad_sum(x)": lambda x: np.repeat(x.reshape(8, 4).sum(1), 4),
    "quad_max(x)": lambda x: np.repeat(x.reshape(8, 4).max(1), 4),
    "simd_prefix_inclusive_sum(x)": np.cumsum,
    "simd_prefix_exclusive_sum(x)": lambda x: np.cumsum(x) - x,
    "simd_prefix_inclusive_product(x)": np.cumprod,
    "simd_shuffle(x, ushort(31 - lane))": lambda x: x[::-1],
    "simd_shuffle_xor(x, 9)": lambda x: x[LANES ^ 9],
    "simd_shuffle_down(x, 5)": lambda x: np.where(LANES < 27, x[(LANES + 5) % 32], x),
    "simd_shuffle_up(x, 5)": lambda x: np.where(LANES >= 5, x[LANES - 5], x),
    "simd_shuffle_rotate_down(x, 5)": lambda x: np.roll(x, -5),
    "simd_shuffle_rotate_up(x, 5)": lambda x: np.roll(x, 5),
    "simd_shuffle_and_fill_up(x, 100 + x, 3)": lambda x: np.concatenate([100 + x[29:], x[:29]]),
    "simd_shuffle_and_fill_down(x, 100 + x, 3)": lambda x: np.concatenate([x[3:], 100 + x[:3]]),
    "simd_broadcast(x, 17)": lambda x: np.full(32, x[17]),
    "simd_broadcast_first(x)": lambda x: np.full(32, x[0]),
    "quad_broadcast(x, 2)": lambda x: np.repeat(x[2::4], 4),
    "quad_shuffle_xor(x, 1)": lambda x: x[LANES ^ 1],
    "int(simd_any(x == 3))": lambda x: np.full(32, int((x == 3).any())),
    "int(simd_all(x > 0))": lambda x: np.full(32, int((x > 0).all())),
    "int(simd_is_first())": lambda x: (LANES == 0).astype(int),
}


def integer_library() -> Library:
    rows = "\n".join(f"  y[({row} * 3 + s) * 32 + lane] = {op};" for row, op in enumerate(OPERATIONS))
    return Library(
        f"""
#include <metal_stdlib>
using namespace metal;
kernel void operations(const device int* values [[buffer(0)]], device int* y [[buffer(1)]],
                       uint lane [[thread_index_in_simdgroup]], uint s [[simdgroup_index_in_threadgroup]]) {{
  const int x = values[s * 32 + lane];
{rows}
}}"""
    )


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_every_operation_on_integers(order: str) -> None:
    x = RNG.integers(1, 4, (3, 32)).astype(np.int32)
    y = np.zeros((len(OPERATIONS), 3, 32), np.int32)
    integer_library().launch("operations", [x, Output(y)], threads=96, threadgroup=96, order=order)
    for row, (operation, expected) in enumerate(OPERATIONS.items()):
        for group in range(3):
            wanted = expected(x[group]).astype(np.int32)
            np.testing.assert_array_equal(y[row, group], wanted, err_msg=f"{operation}, simdgroup {group}")


PARTIAL = """
#include <metal_stdlib>
using namespace metal;
kernel void partial(device float* y [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  const float x = float(t + 1);
  y[t] = simd_sum(x) + 1000.0f * simd_max(x) + 1e6f * simd_prefix_inclusive_sum(x);
}
kernel void vectors(device float* y [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  const float4 x = simd_sum(float4(float(t), 1.0f, -1.0f, 2.0f));
  y[t] = x.x + x.y + x.z + x.w;
}
"""


def test_reductions_take_the_lanes_there_are() -> None:
    y = np.zeros(40, np.float32)
    Library(PARTIAL).launch("partial", [Output(y)], threads=40, threadgroup=40)
    x = np.arange(1, 41, dtype=np.float64)
    groups = [x[:32], x[32:]]
    wanted = np.concatenate([g.sum() + 1000 * g.max() + 1e6 * np.cumsum(g) for g in groups])
    np.testing.assert_allclose(y, wanted, rtol=1e-6)


def test_reductions_of_vectors() -> None:
    y = np.zeros(32, np.float32)
    Library(PARTIAL).launch("vectors", [Output(y)], threads=32, threadgroup=32)
    np.testing.assert_array_equal(y, np.full(32, LANES.sum() + 32 - 32 + 64))


MATRIX = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
kernel void multiply(const device TYPE* a [[buffer(0)]], const device TYPE* b [[buffer(1)]],
                     const device float* c [[buffer(2)]], device float* d [[buffer(3)]], device TYPE* at [[buffer(4)]],
                     device float* diagonal [[buffer(5)]]) {
  simdgroup_matrix<TYPE, 8, 8> left, right;
  simdgroup_float8x8 sum, result;
  simdgroup_load(left, a, 12, ulong2(3, 1));
  simdgroup_load(right, b, 8, 0, true);
  simdgroup_load(sum, c);
  simdgroup_multiply_accumulate(result, left, right, sum);
  simdgroup_store(result, d);
  simdgroup_store(left, at, 8, 0, true);
  simdgroup_store(simdgroup_float8x8(3.0f), diagonal, 8);
}
"""


@pytest.mark.parametrize("dtype", ["float", "half", "bfloat"])
def test_matrix_operations(dtype: str) -> None:
    a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in ((9, 12), (8, 8)))
    c = RNG.standard_normal((8, 8)).astype(np.float32)
    d, diagonal = (np.zeros((8, 8), np.float32) for _ in range(2))
    at = encode(np.zeros((8, 8)), dtype)
    buffers = [encode(a, dtype), encode(b, dtype), c, Output(d), Output(at), Output(diagonal)]
    Library(MATRIX.replace("TYPE", dtype)).launch("multiply", buffers, threads=32, threadgroup=32, check=True)
    left, right = rounded(a, dtype)[1:, 3:11], rounded(b, dtype).T
    np.testing.assert_allclose(d, left.astype(np.float64) @ right + c, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(decode(at), left.T)
    np.testing.assert_array_equal(diagonal, 3 * np.eye(8))


THREAD_ELEMENTS = """
#include <metal_stdlib>
using namespace metal;
kernel void elements(device int* y [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  m.thread_elements()[0] = float(lane);
  m.thread_elements()[1] = float(lane) + 100.0f;
  threadgroup float out[64];
  simdgroup_store(m, out);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = int(out[lane]);
  y[lane + 32] = int(out[lane + 32]);
}
"""


def test_matrix_layout_is_apples() -> None:
    y = np.zeros((8, 8), np.int32)
    Library(THREAD_ELEMENTS).launch("elements", [Output(y)], threads=32, threadgroup=32, check=True)
    # The first row as MLX's kernels assume it: lanes 0, 1 and 8, 9, two neighbours each.
    np.testing.assert_array_equal(y[0], [0, 100, 1, 101, 8, 108, 9, 109])
    np.testing.assert_array_equal(y[4, :2], [16, 116])
    assert sorted(y.ravel() % 100) == sorted([*range(32), *range(32)])


BROADCAST_TREE = """
#include <metal_stdlib>
using namespace metal;
kernel void scan(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                 uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                 uint s [[simdgroup_index_in_threadgroup]], uint groups [[simdgroups_per_threadgroup]]) {
  threadgroup float sums[32];
  const float own = x[t];
  const float before = simd_prefix_exclusive_sum(own);
  if (lane == 31) sums[s] = before + own;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (s == 0) sums[lane] = simd_prefix_exclusive_sum(lane < groups ? sums[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = sums[s] + before + own;
}
"""


def test_a_scan_over_a_threadgroup_is_the_same_in_any_order() -> None:
    x = RNG.standard_normal(1024).astype(np.float32)
    results = []
    for options in ({}, {"order": "reverse"}, {"check": True}, {"check": True, "order": "reverse"}):
        y = np.zeros_like(x)
        Library(BROADCAST_TREE).launch("scan", [x, Output(y)], threads=1024, threadgroup=1024, **options)
        results.append(y.tobytes())
        np.testing.assert_allclose(y, np.cumsum(x, dtype=np.float64), atol=1e-4)
    assert len(set(results)) == 1


def test_a_lane_that_does_not_exist_is_an_error() -> None:
    source = """
kernel void read(device float* y [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
  y[t] = metal::simd_shuffle(float(t), 20);
}"""
    with pytest.raises(LaunchError, match="simd_shuffle reads lane 20, which is not active"):
        Library(source).launch("read", [Output(np.zeros(16, np.float32))], threads=16, threadgroup=16)
