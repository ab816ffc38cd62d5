"""Kernels that nobody here wrote run and agree with MLX on the CPU: MLX's own, and one that mx.fast generates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from msl import Library, Output
from msl.arrays import decode, encode, rounded
from support.mlx_kernels import NO_BATCH, QUANTIZED, generated_source, include_directory, mlx_source

RNG = np.random.default_rng(1)
# The rounding of one store.
EPSILON = {"float": 1e-6, "half": 2.0**-11, "bfloat": 2.0**-8}


@pytest.fixture(scope="module", autouse=True)
def headers_are_here() -> None:
    try:
        include_directory()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def mlx_library(headers: Sequence[str], instance: str) -> Library:
    return Library(mlx_source(headers, instance))


def quantized(n: int, k: int, bits: int, dtype: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Packed weights, scales and biases of an [n, k] matrix, and what they stand for."""
    w, *affine = mx.quantize(mx.array(RNG.standard_normal((n, k)).astype(np.float32)), group_size=64, bits=bits)
    scales, biases = (encode(np.array(part), dtype) for part in affine)
    exact = [mx.array(decode(part)) for part in (scales, biases)]
    dense = np.array(mx.dequantize(w, *exact, group_size=64, bits=bits))
    return [np.array(w), scales, biases], dense


@pytest.mark.parametrize(
    ("kernel", "bits", "dtype", "n", "k"),
    [
        ("affine_qmv_fast", 3, "float", 16, 1024),
        ("affine_qmv_fast", 4, "bfloat", 16, 1024),
        ("affine_qmv", 3, "half", 13, 192),
        ("affine_qmv", 5, "float", 13, 192),
    ],
)
def test_quantized_matvec(kernel: str, bits: int, dtype: str, n: int, k: int) -> None:
    library = mlx_library(QUANTIZED, f"{kernel}<{dtype}, 64, {bits}, false>")
    weights, dense = quantized(n, k, bits, dtype)
    x = RNG.standard_normal((2, k)).astype(np.float32)
    results = []
    # At a ragged edge two simdgroups of affine_qmv compute, and write, the same rows.
    checked = {"check": True, "allow_same_value_writes": kernel == "affine_qmv"}
    for options in (checked, {"order": "reverse"}, {}):
        y = encode(np.zeros((2, n)), dtype)
        buffers = [*weights, encode(x, dtype), Output(y), np.int32(k), np.int32(n), *NO_BATCH]
        library.launch("kernel", buffers, threadgroups=(2, -(-n // 8)), threadgroup=(32, 2), **options)
        results.append(y)
    wanted = rounded(x, dtype).astype(np.float64) @ dense.T
    np.testing.assert_allclose(decode(y), wanted, rtol=EPSILON[dtype], atol=EPSILON[dtype] * np.abs(wanted).max())
    assert results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize(("bits", "dtype"), [(3, "float"), (4, "half")])
def test_quantized_matmul_with_simdgroup_matrices(bits: int, dtype: str) -> None:
    library = mlx_library(
        QUANTIZED,
        f"affine_qmm_t<{dtype}, 64, {bits}, false, false>",
    )
    m, n, k = 33, 40, 128
    weights, dense = quantized(n, k, bits, dtype)
    x = RNG.standard_normal((m, k)).astype(np.float32)
    results = []
    for options in ({"check": True}, {"order": "reverse"}, {}):
        y = encode(np.zeros((m, n)), dtype)
        buffers = [*weights, encode(x, dtype), Output(y), np.int32(k), np.int32(n), np.int32(m), *NO_BATCH]
        library.launch("kernel", buffers, threadgroups=(2, 2), threadgroup=(32, 2, 2), **options)
        results.append(y)
    wanted = rounded(x, dtype).astype(np.float64) @ rounded(dense, dtype).T
    np.testing.assert_allclose(decode(y), wanted, rtol=EPSILON[dtype], atol=4 * EPSILON[dtype] * np.abs(wanted).max())
    assert results[1].tobytes() == results[2].tobytes()


def test_attention_with_function_constants() -> None:
    library = mlx_library(["utils.h", "sdpa_vector.h"], "sdpa_vector<half, 64>")
    heads, n, d = 4, 50, 64
    q = encode(RNG.standard_normal((heads, d)), "half")
    k, v = (encode(RNG.standard_normal((heads // 2, n, d)), "half") for _ in range(2))
    wanted = np.array(
        mx.fast.scaled_dot_product_attention(*(mx.array(decode(a))[None] for a in (q[:, None], k, v)), scale=0.125)
    )[0, :, 0]
    out = np.zeros((heads, d), np.float16)
    strides = [np.uint64(n * d), np.uint64(d)] * 2
    buffers = [q, k, v, Output(out), np.int32(2), np.int32(n), *strides, np.float32(0.125), *[None] * 7]
    constants = dict.fromkeys(range(20, 26), False) | {26: 1}
    library.launch("kernel", buffers, threadgroups=(heads, 1), threadgroup=1024, constants=constants, check=True)
    np.testing.assert_allclose(decode(out), wanted, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float", "bfloat"])
def test_softmax(dtype: str) -> None:
    library = mlx_library(["utils.h", "softmax.h"], f"softmax_single_row<{dtype}, float>")
    x = RNG.standard_normal((3, 501)).astype(np.float32)
    y = encode(np.zeros_like(x), dtype)
    library.launch("kernel", [encode(x, dtype), Output(y), np.int32(501)], threadgroups=3, threadgroup=128, check=True)
    wanted = np.exp(rounded(x, dtype).astype(np.float64))
    wanted /= wanted.sum(1, keepdims=True)
    # MLX takes fast::exp, which may be off by 3 + 2 |x| units in the last place.
    np.testing.assert_allclose(decode(y), wanted, rtol=max(EPSILON[dtype], 3e-6))


def test_kernel_that_mlx_generates(tmp_path: Path) -> None:
    kernel = mx.fast.metal_kernel(
        name="rotate",
        input_names=["x", "w"],
        output_names=["y"],
        source="""
            uint i = thread_position_in_grid.x;
            uint t = thread_position_in_threadgroup.x;
            threadgroup float tile[32];
            tile[t] = float(x[i]) * w[i % w_shape[0]];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            y[i] = T(tile[31 - t] + simd_max(tile[t]));
        """,
    )

    def call(x: mx.array, w: mx.array) -> mx.array:
        template = [("T", x.dtype)]
        shape = {"grid": (64, 1, 1), "threadgroup": (32, 1, 1)}
        return kernel(inputs=[x, w], template=template, output_shapes=[x.shape], output_dtypes=[x.dtype], **shape)[0]

    arguments = (mx.zeros((64,), mx.float16), mx.zeros((4,)))
    library = Library(generated_source(tmp_path / "kernel.mlxfn", call, *arguments))
    (name,) = library.kernels
    assert "rotate" in name
    x = RNG.standard_normal(64).astype(np.float16)
    w = RNG.standard_normal(4).astype(np.float32)
    y = np.zeros(64, np.float16)
    library.launch(name, [x, w, np.array([4], np.int32), Output(y)], threads=64, threadgroup=32, check=True)
    tiles = (x.astype(np.float32) * np.tile(w, 16)).reshape(2, 32)
    np.testing.assert_array_equal(y.reshape(2, 32), (tiles[:, ::-1] + tiles.max(1, keepdims=True)).astype(np.float16))


@pytest.mark.parametrize("packed", [False, True])
def test_the_gated_delta_kernels_of_mlx_lm(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("mlx_lm.models.gated_delta", reason="mlx-lm is not installed")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(theirs, "_gated_delta_kernel", theirs._make_gated_delta_kernel())
    monkeypatch.setattr(theirs, "_gated_delta_kernel_packed", theirs._make_gated_delta_packed_kernel())
    steps, key_heads, heads, d = 5, 2, 4, 128

    def draw(*shape: int) -> np.ndarray:
        return RNG.standard_normal(shape).astype(np.float32)

    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (draw(1, steps, key_heads, d) for _ in range(2)))
    v, state = draw(1, steps, heads, d), draw(1, heads, d, d)
    g, beta = (1 / (1 + np.exp(-draw(1, steps, heads))) for _ in range(2))
    values = (q, k, v, g, beta, state)
    arguments = [mx.array(x) for x in values]
    function = theirs.gated_delta_kernel if packed else theirs.gated_delta_kernel_unpacked
    library = Library(generated_source(tmp_path / "kernel.mlxfn", function, *arguments))
    wanted = [np.array(x) for x in theirs.gated_delta_ops(*arguments)]
    grid, group = ((32, d // 8, heads), (32, 2)) if packed else ((32, d, heads), (32, 4))
    for options in ({"check": True}, {"order": "reverse"}):
        y, after = np.zeros_like(v), np.zeros_like(state)
        buffers = [*values, np.int32(steps), Output(y), Output(after)]
        library.launch(library.kernels[0], buffers, threads=grid, threadgroup=group, **options)
        np.testing.assert_allclose(y, wanted[0], atol=5e-6)
        np.testing.assert_allclose(after, wanted[1], atol=5e-6)
