"""The shim does what the emulator's does: run on the emulator's threads, with its few instructions emulated as well.

What is left to a GPU is those instructions, and what the compiler makes of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msl import Library, Output

CPU = (Path(__file__).parent / "cpu", Path(__file__).parent / "shim")
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
ARGUMENTS = "const device float* x [[buffer(0)]], device float* y [[buffer(1)]], uint i [[thread_position_in_grid]]"
RNG = np.random.default_rng(3)

SIMD = {
    "sum": "simd_sum(x[i])",
    "product": "simd_product(x[i])",
    "max": "simd_max(x[i])",
    "min": "simd_min(x[i])",
    "half_sum": "float(simd_sum(half(x[i])))",
    "vector_sum": "simd_sum(float4(x[i], 1.0f, x[i ^ 1], 0.5f)).z",
    "and": "float(simd_and(as_type<uint>(x[i]) | 5))",
    "or": "float(simd_or(uint(abs(x[i]) * 8)))",
    "any": "float(simd_any(x[i] > 2.0f)) + 2 * float(simd_all(x[i] < 2.0f))",
    "shuffle": "simd_shuffle(x[i], ushort(i * 7 % 32))",
    "broadcast": "simd_broadcast(x[i], 5) + simd_broadcast_first(x[i])",
    "xor": "simd_shuffle_xor(x[i], 11)",
    "down": "simd_shuffle_down(x[i], 3)",
    "up": "simd_shuffle_up(x[i], 9)",
    "fill_up": "simd_shuffle_and_fill_up(x[i], x[i ^ 3], ushort(5))",
    "fill_down": "simd_shuffle_and_fill_down(x[i], x[i ^ 3], ushort(7))",
    "quad_sum": "quad_sum(x[i])",
    "short": "float(simd_shuffle_xor(ushort(i), 1))",
}


def both(
    text: str, x: np.ndarray, threads: int = 128, outputs: int = 1, **options: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the emulator's shim and what this one gives, ``outputs`` numbers a thread."""
    results = []
    for shim in ((), CPU):
        y = np.zeros(outputs * threads, np.float32)
        library = Library(HEADER + text, shim=shim)
        library.launch("f", [x, Output(y)], threads=threads, threadgroup=64, check=True, **options)
        results.append(y)
    return results[0], results[1]


def test_simd_operations() -> None:
    """All in one kernel, since it is the compiler that takes time."""
    x = RNG.standard_normal(128).astype(np.float32)
    text = " ".join(f"y[i + {128 * row}] = {expression};" for row, expression in enumerate(SIMD.values()))
    results = both(f"kernel void f({ARGUMENTS}) {{ {text} }}", x, outputs=len(SIMD))
    for name, wanted, found in zip(SIMD, *(result.reshape(-1, 128) for result in results), strict=True):
        assert np.any(wanted), name
        assert wanted.tobytes() == found.tobytes(), name


@pytest.mark.parametrize("name", ["inclusive", "exclusive"])
def test_prefix_sums(name: str) -> None:
    x = RNG.standard_normal(128).astype(np.float32)
    wanted, found = both(f"kernel void f({ARGUMENTS}) {{ y[i] = simd_prefix_{name}_sum(x[i]); }}", x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float", "half", "bfloat"])
def test_matrices(dtype: str) -> None:
    text = f"""kernel void f({ARGUMENTS}, uint t [[thread_index_in_threadgroup]],
                              uint s [[simdgroup_index_in_threadgroup]]) {{
      threadgroup {dtype} tile[2][64];
      threadgroup float out[64];
      tile[0][t] = {dtype}(x[i]);
      tile[1][t] = {dtype}(x[127 - i]);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_matrix<{dtype}, 8, 8> a, b;
      simdgroup_matrix<float, 8, 8> c(0.5f);
      simdgroup_load(a, tile[0], 8);
      simdgroup_load(b, tile[1], 8, ulong2(0), true);
      simdgroup_multiply_accumulate(c, a, b, c);
      if (s == 0) simdgroup_store(c, out, 8);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = out[t];
    }}"""
    wanted, found = both(text, RNG.standard_normal(128).astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_functions() -> None:
    ranges = {"exp": (-80, 80), "exp2": (-80, 80), "log": (1e-30, 1e30), "log2": (1e-30, 9.0)}
    ranges |= {"sin": (-2e5, 2e5), "cos": (-2e5, 2e5), "rsqrt": (1e-9, 1e9), "sqrt": (0, 1e9)}
    ranges |= {"floor": (-9, 9), "rint": (-9, 9)}
    more = (np.full(12, 1.0), np.linspace(-4, 4, 12))
    x = np.stack([np.append(RNG.uniform(low, high, 116), more[low < 0]) for low, high in ranges.values()])
    x = x.astype(np.float32)
    text = " ".join(f"y[i + {128 * row}] = {name}(x[i + {128 * row}]);" for row, name in enumerate(ranges))
    found = both(f"kernel void f({ARGUMENTS}) {{ {text} }}", x, outputs=len(ranges))[1].reshape(x.shape)
    for name, given, result in zip(ranges, x.astype(np.float64), found, strict=True):
        exact = given**-0.5 if name == "rsqrt" else getattr(np, name)(given)
        np.testing.assert_allclose(result, exact, rtol=1e-6, atol=2e-7, err_msg=name)


def test_the_ends_of_exp() -> None:
    x = np.array([-np.inf, np.inf, 0, -200, 200, np.nan] + [1] * 122, np.float32)
    found = both(f"kernel void f({ARGUMENTS}) {{ y[i] = exp(x[i]); }}", x)[1]
    np.testing.assert_array_equal(found[:6], [0, np.inf, 1, 0, np.inf, np.nan])
