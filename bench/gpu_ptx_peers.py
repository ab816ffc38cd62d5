"""The published kernels of the same work, as cases of bench.gpu_ptx: MLX's affine_qmv_fast, mlx-lm's gated_delta_step.

They do less than ours: no norm, residual or SwiGLU about the products, no convolution, gates or gated norm about the
recurrence, which MLX has in launches of their own. A case is named after the one of ours that it stands beside.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import numpy as np

import nvptx
from bench import gpu_ptx_format as form
from mlx_delta import ops
from msl.arrays import decode, encode
from support.mlx_kernels import NO_BATCH, QUANTIZED, generated_source, mlx_source

BOUND = 4e-3  # relative rms, of one rounding to bfloat16
# K, and (N, bits) of each matrix.
PRODUCTS = {
    "qmm-9b-in_proj": (4096, [(8192, 5), (4096, 5)]),
    "qmm-9b-qkv": (4096, [(8192, 5), (1024, 5), (1024, 5)]),
    "qmm-9b-gate_up": (4096, [(12288, 3), (12288, 3)]),
    "qmm-9b-down": (12288, [(4096, 4)]),
    "qmm-9b-lm_head": (4096, [(248320, 6)]),
}
QMV_ROWS = 8  # of a threadgroup of two simdgroups


@dataclass(frozen=True)
class Source:
    """The kernel ``name`` of a Metal text, and the threads of its threadgroups."""

    text: str
    name: str
    threads: int


@dataclass(frozen=True)
class Peer:
    """A case, its arrays, and its kernels by the name that the case has for them."""

    case: form.Case
    arrays: dict[str, np.ndarray]
    kernels: dict[str, Source]

    def compile(self, kernel: str) -> nvptx.Kernel:
        source = self.kernels[kernel]
        constants = next(launch.constants for launch in self.case.launches if launch.kernel == kernel)
        sizes = {int(symbol.rsplit("_", 1)[1]): len(value) // 2 for symbol, value in constants.items()}
        return nvptx.compile_kernel(
            source.text, source.name, threads=source.threads, constant_bytes=sizes, rename=kernel
        )


def peers(patterns: Sequence[str]) -> Iterator[Peer]:
    """Those whose name contains one of ``patterns``."""
    for name, (K, matrices) in PRODUCTS.items():
        if any(pattern in f"mlx-{name}" for pattern in patterns):
            yield product(f"mlx-{name}", K, matrices)
    name = "mlx-lm-delta_mixer-b1t1h16x2d128"
    if any(pattern in name for pattern in patterns):
        yield recurrence(name, key_heads=16, heads=32, d=128)


def made(seed: int, mean: float, deviation: float, dtype: str, count: int) -> tuple[form.Input, np.ndarray]:
    """An input by recipe, and its bits."""
    recipe = form.Recipe(seed, mean, deviation, -1)
    bits = form.generate(recipe, dtype, count)
    return form.Input(dtype, count, form.Recipe(seed, mean, deviation, zlib.crc32(bits.data))), bits


def matrix_of(parts: list[np.ndarray], K: int, bits: int) -> ops.Matrix:
    words, scales, biases = parts
    N = scales.size // (K // 64)
    scale, bias = (mx.array(part).view(mx.bfloat16).reshape(N, -1) for part in (scales, biases))
    return ops.Matrix.affine(mx.array(words).reshape(N, -1), scale, bias, bits, 64)


def product(name: str, K: int, matrices: list[tuple[int, int]]) -> Peer:
    """y_i = x W_i^T, a launch each. Expected: our own CPU kernel's, which the tests hold to its reference."""
    x, x_bits = made(1, 0.0, 1.0, "bfloat16", K)
    x_array = mx.array(x_bits).view(mx.bfloat16)[None]
    inputs, outputs, launches = [x], [], []
    arrays: dict[str, np.ndarray] = {}
    kernels: dict[str, Source] = {}
    for i, (N, bits) in enumerate(matrices):
        kernel = f"affine_qmv_fast_{bits}"
        groups = N * K // 64
        spread = 0.02 / 2**bits
        parts = [
            made(3 * i + 2, 0, 0, "uint32", N * K * bits // 32),
            made(3 * i + 3, spread, spread / 2, "bfloat16", groups),
            made(3 * i + 4, -spread * 2 ** (bits - 1), spread, "bfloat16", groups),
        ]
        constants = dict(enumerate(map(np.asarray, [np.int32(K), np.int32(N), *NO_BATCH]), start=5))
        text = mlx_source(QUANTIZED, f"affine_qmv_fast<bfloat16_t, 64, {bits}, false>")
        kernels[kernel] = Source(text, "kernel", 64)
        roles = [("input", len(inputs) + part) for part in range(3)] + [("input", 0), ("output", i)]
        launches.append(launch(kernel, roles, constants, [1, N // QMV_ROWS, 1], [32, 2, 1]))
        inputs += [one for one, _ in parts]
        y = ops.qmm(x_array, [matrix_of([array for _, array in parts], K, bits)])
        outputs.append(form.Output("bfloat16", N, BOUND, None))
        arrays[f"output{i}"] = np.array(y.view(mx.uint16)).reshape(-1)
    return Peer(case_of(name, inputs, outputs, launches, "the CPU kernel"), arrays, kernels)


def recurrence(name: str, key_heads: int, heads: int, d: int) -> Peer:
    """One token of mlx-lm's gated delta rule. Expected: its own ops."""
    from mlx_lm.models import gated_delta as theirs

    sizes = {"q": (key_heads, d), "k": (key_heads, d), "v": (heads, d), "g": (heads,), "beta": (heads,)}
    arguments, arrays = [], {}
    rng = np.random.default_rng(0)
    for i, (part, size) in enumerate(sizes.items()):
        values: np.ndarray = rng.standard_normal((1, 1, *size)).astype(np.float32)
        if part in "qk":
            values /= np.sqrt(np.square(values).sum(-1, keepdims=True))
        if part in ("g", "beta"):
            values = 1 / (1 + np.exp(-values))
        arrays[f"input{i}"] = encode(values.reshape(-1), "bfloat")
        arguments.append(mx.array(decode(arrays[f"input{i}"])).astype(mx.bfloat16).reshape(values.shape))
    state, state_bits = made(9, 0.0, 0.2, "float32", heads * d * d)
    arguments.append(mx.array(state_bits).reshape(1, heads, d, d))
    wanted = theirs.gated_delta_ops(*arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(mx.metal, "is_available", lambda: True),
        patch.object(theirs, "_gated_delta_kernel", theirs._make_gated_delta_kernel()),
    ):
        function = theirs.gated_delta_kernel_unpacked
        source = generated_source(Path(folder) / "kernel.mlxfn", function, *arguments)
    (kernel,) = nvptx.kernels_of(source)
    constants = {6: np.asarray(np.int32(1))}
    inputs = [form.Input("bfloat16", arrays[f"input{i}"].size, None) for i in range(5)] + [state]
    outputs = [
        form.Output("bfloat16", heads * d, BOUND, None),
        form.Output("float32", heads * d * d, BOUND, None),
    ]
    arrays["output0"] = np.array(wanted[0].astype(mx.bfloat16).view(mx.uint16)).reshape(-1)
    arrays["output1"] = np.array(wanted[1].astype(mx.float32)).reshape(-1)
    roles = [("input", i) for i in range(6)] + [("output", 0), ("output", 1)]
    launches = [launch(kernel, roles, constants, [1, d // 4, heads], [32, 4, 1])]
    case = case_of(name, inputs, outputs, launches, "mlx-lm's ops")
    return Peer(case, arrays, {kernel: Source(source, kernel, 128)})


def launch(
    kernel: str, roles: list[tuple[str, int]], constants: dict[int, np.ndarray], grid: list[int], threads: list[int]
) -> form.Launch:
    values = {nvptx.constant_symbol(index): value.tobytes().hex() for index, value in constants.items()}
    return form.Launch(kernel, roles, values, grid, threads)


def case_of(
    name: str, inputs: list[form.Input], outputs: list[form.Output], launches: list[form.Launch], reference: str
) -> form.Case:
    sizes = [(part.dtype, part.count) for part in inputs] + [(part.dtype, part.count) for part in outputs]
    nbytes = sum(count * form.itemsize(dtype) for dtype, count in sizes)
    return form.Case(name, "bfloat16", True, nbytes, reference, inputs, outputs, [], launches)
