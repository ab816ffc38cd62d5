"""Grids, builtins, buffers, threadgroup memory, counted bytes, and what a launch refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from msl import LaunchError, Library, Output, SourceError, Traffic

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"

POSITIONS = (
    HEADER
    + """
kernel void positions(device uint* y [[buffer(0)]], uint3 thread_ [[thread_position_in_grid]],
                      uint3 group [[threadgroup_position_in_grid]], ushort3 local [[thread_position_in_threadgroup]],
                      uint index [[thread_index_in_threadgroup]], uint3 grid [[threads_per_grid]],
                      uint3 groups [[threadgroups_per_grid]], uint3 size [[threads_per_threadgroup]],
                      uint3 dispatched [[dispatch_threads_per_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]]) {
  device uint* out = y + 18 * (thread_.x + grid.x * (thread_.y + grid.y * thread_.z));
  const uint values[18] = {group.x, group.y, group.z, local.x, local.y, local.z, index, size.x, size.y, size.z,
                           groups.x, groups.y, dispatched.x, dispatched.y, lane, simdgroup, simdgroups, grid.z};
  for (int i = 0; i < 18; i++) out[i] = values[i];
}
"""
)


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_an_odd_grid_has_partial_threadgroups_at_its_edges(order: str) -> None:
    grid, size = (13, 5, 2), (8, 4, 2)
    y = np.zeros((2, 5, 13, 18), np.uint32)
    Library(POSITIONS).launch("positions", [Output(y)], threads=grid, threadgroup=size, order=order, check=True)
    for z, row, x in np.ndindex(2, 5, 13):
        group = (x // 8, row // 4, 0)
        local = (x % 8, row % 4, z)
        here = (min(8, 13 - group[0] * 8), min(4, 5 - group[1] * 4), 2)
        index = local[0] + here[0] * (local[1] + here[1] * local[2])
        simdgroups = -(-here[0] * here[1] * here[2] // 32)
        wanted = [*group, *local, index, *here, 2, 2, 8, 4, index % 32, index // 32, simdgroups, 2]
        np.testing.assert_array_equal(y[z, row, x], wanted)


PARAMETERS = (
    HEADER
    + """
struct Parameters {
  int n;
  float scale;
  ushort shift;
};
kernel void apply(const device float* x [[buffer(0)]], constant Parameters& p [[buffer(2)]],
                  device float* y [[buffer(3)]], constant float* table [[buffer(4)]],
                  uint i [[thread_position_in_grid]]) {
  if (int(i) < p.n) y[i] = y[i] + x[i] * p.scale + table[p.shift];
}
"""
)


def test_structs_in_constant_memory_and_buffers_in_place() -> None:
    x = np.arange(10, dtype=np.float32)
    y = np.full(10, 5, np.float32)
    parameters = np.array([(7, 0.5, 2, 0)], [("n", "i4"), ("scale", "f4"), ("shift", "u2"), ("pad", "u2")])
    table = np.array([1, 2, 3], np.float32)
    buffers = [x, None, parameters.tobytes(), y, table]
    result = Library(PARAMETERS).launch("apply", buffers, threads=10, threadgroup=4, check=True)
    wanted = np.where(np.arange(10) < 7, 5 + x / 2 + 3, 5)
    np.testing.assert_array_equal(y, wanted)
    assert result.arrays["y"] is y


REVERSE = (
    HEADER
    + """
template <typename T>
[[kernel]] void reverse(const device T* x [[buffer(0)]], device T* y [[buffer(1)]],
                        threadgroup T* left [[threadgroup(0)]], threadgroup float4* right [[threadgroup(1)]],
                        uint t [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  left[t] = x[t];
  right[t] = float4(float(t));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = left[n - 1 - t] + T(right[n - 1 - t].w);
}
template [[host_name("reverse_float")]] [[kernel]] decltype(reverse<float>) reverse<float>;
template [[host_name("reverse_int")]] [[kernel]] void reverse<int>(const device int* x, device int* y,
    threadgroup int*, threadgroup float4*, uint, uint);
"""
)


COPY = (
    HEADER
    + """
kernel void step(const device float* before [[buffer(0)]], device float* after [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) {
  after[i] = before[OTHER] + 1.0f;
}
"""
)


def test_one_array_bound_twice_is_one_buffer() -> None:
    state = np.arange(16, dtype=np.float32)
    Library(COPY.replace("OTHER", "i")).launch("step", [state, state], threads=16, threadgroup=16, check=True)
    np.testing.assert_array_equal(state, np.arange(1, 17))
    neighbours = Library(COPY.replace("OTHER", "i ^ 1"))
    with pytest.raises(LaunchError, match="race"):
        neighbours.launch("step", [state, state], threads=16, threadgroup=16, check=True)
    neighbours.launch("step", [state, Output(np.zeros_like(state))], threads=16, threadgroup=16, check=True)
    with pytest.raises(ValueError, match="arguments 'before' and 'after' overlap in part"):
        neighbours.launch("step", [state[:12], state[4:]], threads=12, threadgroup=12)


@pytest.mark.parametrize("dtype", ["float", "int"])
def test_dynamic_threadgroup_memory(dtype: str) -> None:
    library = Library(REVERSE)
    assert library.kernels == ["reverse_float", "reverse_int"]
    x = np.arange(48).astype({"float": np.float32, "int": np.int32}[dtype]) * 2
    y = np.zeros_like(x)
    options: dict[str, Any] = {"threads": 48, "threadgroup": 48, "check": True}
    sizes = {0: 48 * 4, 1: 48 * 16}
    library.launch(f"reverse_{dtype}", [x, Output(y)], threadgroup_bytes=sizes, **options)
    np.testing.assert_array_equal(y, x[::-1] + np.arange(48)[::-1])
    with pytest.raises(LaunchError, match=r"out of bounds: write of 4 bytes at byte 176 of 'left' of 176 bytes"):
        library.launch(f"reverse_{dtype}", [x, Output(y)], threadgroup_bytes={**sizes, 0: 176}, **options)


COUNTED = (
    HEADER
    + """
kernel void matvec(const device float4* w [[buffer(0)]], const device float* x [[buffer(1)]],
                   device float* y [[buffer(2)]], constant uint& k [[buffer(3)]],
                   uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  float sum = 0.0f;
  for (uint i = lane; i < k / 4; i += 32) {
    const float4 weights = w[row * (k / 4) + i];
    for (uint j = 0; j < 4; j++) sum += weights[j] * x[4 * i + j];
  }
  sum = simd_sum(sum);
  if (lane == 0) y[row] = sum;
}
"""
)


def test_bytes_are_counted() -> None:
    w = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    y = np.zeros(6, np.float32)
    buffers = [w, x, Output(y), np.uint32(256)]
    result = Library(COUNTED).launch("matvec", buffers, threadgroups=6, threadgroup=32, count_bytes=True)
    np.testing.assert_allclose(y, w @ x, rtol=1e-5)
    none = Traffic(read=0, written=0, read_by_threadgroups=0, unique_read=0, unique_written=0)
    once = {"read": w.nbytes, "read_by_threadgroups": w.nbytes, "unique_read": w.nbytes}
    assert result.traffic["w"] == replace(none, **once)
    rows = 6 * x.nbytes
    assert result.traffic["x"] == replace(none, read=rows, read_by_threadgroups=rows, unique_read=x.nbytes)
    assert result.traffic["y"] == replace(none, written=24, unique_written=24)
    shape = result.traffic["k"]  # read by every lane of six threadgroups
    assert (shape.read_by_threadgroups, shape.unique_read) == (24, 4)
    assert Library(COUNTED).launch("matvec", buffers, threadgroups=6, threadgroup=32).traffic == {}


Y = np.zeros(8, np.float32)
READ_ONLY = np.zeros(8, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("buffers", "options", "message"),
    [
        ([Y], {}, "kernel 'apply': argument 'p' is buffer 2, found 1 buffers"),
        ([Y, None, None, Y, Y], {}, "argument 'p' is buffer 2, found None"),
        ([Y, None, b"", Y, Y, Y], {}, "takes 5 buffers of 31 possible, found 6"),
        ([Output(Y), None, b"", Y, Y], {}, "argument 'x': an Output, but the kernel only reads"),
        ([Y, None, b"", READ_ONLY, Y], {}, "argument 'y': the kernel may write it, but the array is read-only"),
        ([Y[::2], None, b"", Y, Y], {}, "argument 'x': expected a C-contiguous array, found strides (8,)"),
        ([3.0, None, b"", Y, Y], {}, "argument 'x': expected an array, Output, bytes or numpy scalar, found float"),
        ([Y, None, bytes(12), Y, Y], {"threads": None}, "expected either threads or threadgroups, found None and None"),
        ([Y, None, bytes(12), Y, Y], {"threadgroup": (64, 32)}, "has at most 1024 threads, found (64, 32)"),
        ([Y, None, bytes(12), Y, Y], {"threads": (8, 0)}, "threads is one to three numbers from 1 on, found (8, 0)"),
        ([Y, None, bytes(12), Y, Y], {"order": "random"}, "order is one of ('forward', 'reverse'), found 'random'"),
        ([Y, None, bytes(12), Y, Y], {"threadgroup_bytes": {0: 16}}, "no parameter expected, found {0: 16}"),
    ],
)
def test_arguments_that_do_not_fit(buffers: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Library(PARAMETERS).launch("apply", buffers, **{"threads": 8, "threadgroup": 8, **options})


def test_a_struct_of_the_wrong_size() -> None:
    with pytest.raises(LaunchError, match="argument 'p' needs 12 bytes, found 8"):
        Library(PARAMETERS).launch("apply", [Y, None, bytes(8), Y, Y], threads=8, threadgroup=8)


def test_an_unknown_kernel() -> None:
    with pytest.raises(SourceError, match="no kernel 'aply'; found: apply"):
        Library(PARAMETERS).launch("aply", [Y, None, bytes(12), Y, Y], threads=8, threadgroup=8)


def test_too_much_threadgroup_memory() -> None:
    text = (
        HEADER
        + "kernel void f(device float* y [[buffer(0)]])"
        + "{ alignas(16) threadgroup float x[8193]; x[0] = 1.0f; y[0] = x[0]; }"
    )
    with pytest.raises(LaunchError, match="threadgroup variable 'x' needs 32772 bytes, of 32768 left"):
        Library(text).launch("f", [Output(np.zeros(1, np.float32))], threads=1, threadgroup=1)
