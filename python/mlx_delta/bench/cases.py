"""The one registry of op cases: tests compare each with its reference, benches time those that have a model's shapes.

A case makes an op's arguments; the op and its reference are ``mlx_delta.ops.<op>`` and ``<op>_reference``. Inputs come
from a seeded generator, so a case is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.bench.sizes import config_of
from mlx_delta.config import TextConfig
from mlx_delta.conversion.recipe import choose

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# rms(error) / rms(reference). Half types: inputs are rounded before both see them, so one rounding of the output.
BOUNDS = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 4e-3}
# The arguments that an op's results after the first take the place of, in place where nobody else holds them.
STATES = {
    "conv1d": ("state",),
    "gated_delta": ("state",),
    "delta_mixer": ("conv_state", "delta_state"),
    "attention_prepare": ("keys", "values"),
}

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One op on one set of shapes.

    ``make`` draws the arguments for a dtype. ``moved`` says how many bytes the op has to move for them; by default
    every argument and result once. ``real`` marks shapes of a published model, which benches time. ``flops`` counts
    multiplications and additions, where an op has enough of them to matter. ``every`` compares only every so many-th
    row of qmm's matrices: mlx needs minutes to dequantize a whole vocabulary.
    """

    op: str
    name: str
    make: Callable[[mx.Dtype, np.random.Generator], Arguments]
    moved: Callable[[Arguments, list[mx.array]], int] | None = None
    real: bool = False
    flops: Callable[[Arguments], int] | None = None
    every: int = 1

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, dtype: mx.Dtype) -> Arguments:
        return self.make(dtype, np.random.default_rng(sum(self.id.encode())))

    def run(self, arguments: Arguments) -> list[mx.array]:
        return as_list(getattr(ops, self.op)(**arguments))

    def reference(self, arguments: Arguments) -> list[mx.array]:
        return as_list(getattr(ops, self.op + "_reference")(**arguments))

    def step(self, arguments: Arguments) -> list[mx.array]:
        """``run``, after which ``arguments`` hold the new states and nobody the old ones, as in a decode loop."""
        results = self.run(arguments)
        arguments.update(zip(STATES.get(self.op, ()), results[1:], strict=True))
        return results

    def compare(self, arguments: Arguments) -> Iterator[tuple[mx.array, mx.array]]:
        """(found, expected) of each result; of qmm only every ``every``-th output feature."""
        if self.every == 1:
            yield from zip(self.run(arguments), self.reference(arguments), strict=True)
            return
        thinned = [thin(matrix, self.every) for matrix in arguments["segments"]]
        starts = np.cumsum([0, *(matrix.rows for matrix in arguments["segments"])])
        chosen = [np.arange(start, end, self.every) for start, end in pairwise(starts)]
        columns = mx.array(chosen[0] if arguments["activation"] else np.concatenate(chosen))
        residual = arguments["residual"]
        fewer = {"segments": thinned, "residual": None if residual is None else residual[:, columns]}
        (found,), (expected,) = self.run(arguments), self.reference({**arguments, **fewer})
        yield found[:, columns], expected

    def bytes(self, arguments: Arguments, results: list[mx.array]) -> int:
        if self.moved is not None:
            return self.moved(arguments, results)
        flat = [a for value in arguments.values() for a in (value if isinstance(value, list) else [value])]
        return sum(a.nbytes for a in [*flat, *results] if isinstance(a, (mx.array, ops.Matrix)))


def as_list(result: mx.array | tuple[mx.array, ...]) -> list[mx.array]:
    return list(result) if isinstance(result, tuple) else [result]


def relative_rms(found: mx.array, expected: mx.array) -> float:
    """rms(found - expected) / rms(expected); NaN if anything is NaN."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    error = mx.sqrt(mx.mean(mx.square(found - expected)))
    return float(error / mx.maximum(mx.sqrt(mx.mean(mx.square(expected))), 1e-30))


def normal(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float32, scale: float = 1.0) -> mx.array:
    return mx.array((scale * rng.standard_normal(shape)).astype(np.float32)).astype(dtype)


def quantized(
    rng: np.random.Generator, N: int, K: int, bits: int, group_size: int = 64, dtype: mx.Dtype = mx.bfloat16
) -> ops.Matrix:
    """Random packed words with plausible scales, of dtype: no float matrix is made on the way."""
    words = mx.array(rng.integers(0, 2**32, size=(N, K * bits // 32), dtype=np.uint32))
    scales = (0.02 / 2**bits) * (1 + 0.5 * normal(rng, N, K // group_size))
    biases = -scales * 2 ** (bits - 1)
    return ops.Matrix.affine(words, scales.astype(dtype), biases.astype(dtype), bits, group_size)


def thin(matrix: ops.Matrix, every: int) -> ops.Matrix:
    """Every ``every``-th row."""
    if matrix.scales is None or matrix.biases is None:
        return ops.Matrix.plain(matrix.weight[::every])
    weight, scales, biases = matrix.weight[::every], matrix.scales[::every], matrix.biases[::every]
    return ops.Matrix.affine(weight, scales, biases, matrix.bits, matrix.group_size)


def plain(rng: np.random.Generator, N: int, K: int, dtype: mx.Dtype) -> ops.Matrix:
    return ops.Matrix.plain(normal(rng, N, K, dtype=dtype, scale=K**-0.5))


# A segment is (N, bits, group_size[, dtype of the scales]) or (N, dtype).
def qmm_case(
    name: str, M: int, K: int, segments: list[tuple], *, norm: bool = False, residual: bool = False,
    activation: str | None = None, real: bool = False, every: int = 1, sequences: int | None = None,
) -> Case:  # fmt: skip
    """sequences: x is [sequences, M / sequences, K] instead of [M, K]."""
    lead = (M,) if sequences is None else (sequences, M // sequences)

    def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
        matrices = [plain(rng, s[0], K, s[1]) if len(s) == 2 else quantized(rng, s[0], K, *s[1:]) for s in segments]
        N = matrices[0].rows if activation else sum(m.rows for m in matrices)
        return {
            "x": normal(rng, *lead, K, dtype=dtype),
            "segments": matrices,
            "norm": 1 + normal(rng, K, scale=0.1) if norm else None,
            "residual": normal(rng, *lead, N, dtype=dtype) if residual else None,
            "activation": activation,
        }

    def flops(arguments: Arguments) -> int:
        return 2 * M * K * sum(matrix.rows for matrix in arguments["segments"])

    return Case("qmm", name, make, real=real, flops=flops, every=every)


def qmm_cases() -> Iterator[Case]:
    for bits in (2, 3, 4, 5, 6, 8):
        for group_size in (32, 64, 128):
            yield qmm_case(f"b{bits}g{group_size}", 3, 3 * 128, [(37, bits, group_size)])
            # K that ends within a kernel's tile of 256 or 128 columns, after none or some whole ones
            yield qmm_case(f"b{bits}g{group_size}m1", 1, 5 * group_size, [(18, bits, group_size)])
            yield qmm_case(f"b{bits}g{group_size}m1-long", 1, 19 * group_size, [(5, bits, group_size)])
            yield qmm_case(f"b{bits}g{group_size}m4", 4, 19 * group_size, [(33, bits, group_size)], norm=True)
            # A prompt's rows, over several blocks of columns, with rows and weight rows that fill no tile
            yield qmm_case(f"b{bits}g{group_size}m22", 22, 19 * group_size, [(70, bits, group_size)], norm=True)
    for name, dtype in DTYPES.items():
        yield qmm_case(f"scales-{name}", 2, 320, [(21, 3, 64, dtype)], norm=True)
    for M in (1, 2, 3, 8, 15, 16, 17, 31, 33, 64, 200):
        yield qmm_case(f"m{M}", M, 320, [(65, 3, 64)], norm=True)
    for name, dtype in DTYPES.items():
        yield qmm_case(f"plain-{name}", 2, 200, [(7, dtype)], norm=True)
        for M in (1, 3, 8, 17, 40):
            yield qmm_case(f"plain-{name}m{M}", M, 27, [(18, dtype)])
    # Rows of x that no longer stay in L1 whole, over several blocks of columns
    yield qmm_case("plain-blocks", 7, 1790, [(21, mx.bfloat16)])
    yield qmm_case("mixed", 2, 256, [(96, 5, 64), (33, 3, 32), (6, mx.bfloat16), (1, mx.float32)], norm=True)
    yield qmm_case("residual", 5, 128, [(50, 4, 64)], residual=True)
    yield qmm_case("swiglu", 3, 192, [(61, 3, 64), (61, 4, 32)], norm=True, activation="swiglu")
    yield qmm_case("swiglu-residual", 1, 64, [(5, 2, 64), (5, mx.float16)], residual=True, activation="swiglu")
    prompt = [(96, 5, 64), (33, 3, 32), (6, mx.bfloat16), (1, mx.float32)]
    yield qmm_case("prompts", 38, 576, prompt, residual=True, sequences=2)
    yield qmm_case("prompts-norm", 38, 576, prompt, norm=True, sequences=2)
    yield qmm_case("prompts-one-each", 20, 192, prompt[:2], norm=True, sequences=20)
    yield qmm_case("prompt-swiglu", 19, 192, [(61, 3, 64), (61, 4, 32)], norm=True, activation="swiglu")
    yield qmm_case("prompt-swiglu-mixed", 17, 64, [(50, 2, 64), (50, mx.float16)], activation="swiglu")
    # So wide that x goes by blocks of 16 rows: the last one is one row
    yield qmm_case("prompt-wide", 17, 66560, [(3, 3, 64), (2, 5, 128)])
    yield qmm_case("prompt-plain-odd", 18, 27, [(18, mx.bfloat16)], residual=True)


def qmm_model_cases(size: str, text: TextConfig) -> Iterator[Case]:
    """Every matrix of a model in the recipe, fused as its layers fuse them: one row (decode), 8 (batches), a prompt.

    o_proj has the shape and the width of out_proj in every published size.
    """
    recipe = choose("unsloth", None, 64)
    layer, hidden, inner = "language_model.model.layers.0", text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    gates = text.linear_num_value_heads

    def segment(rows: int, module: str) -> tuple:
        width = recipe.width(module)
        return (rows, width.bits, width.group_size) if width else (rows, mx.bfloat16)

    def segments(block: str, modules: dict[str, int]) -> list[tuple]:
        return [segment(rows, f"{layer}.{block}.{module}") for module, rows in modules.items()]

    in_proj = {"in_proj_qkv": text.conv_dim, "in_proj_z": text.value_dim, "in_proj_b": gates, "in_proj_a": gates}
    delta_in, delta_out = segments("linear_attn", in_proj), segments("linear_attn", {"out_proj": hidden})
    qkv = segments("self_attn", {"q_proj": 2 * queries, "k_proj": keys, "v_proj": keys})
    gate_up, down = segments("mlp", {"gate_proj": inner, "up_proj": inner}), segments("mlp", {"down_proj": hidden})
    for M, end, every in ((1, "", 1), (8, "-m8", 7), (512, "-m512", 7)):
        yield qmm_case(f"{size}-in_proj{end}", M, hidden, delta_in, norm=True, real=True, every=every)
        yield qmm_case(f"{size}-out_proj{end}", M, text.value_dim, delta_out, residual=True, real=True, every=every)
        yield qmm_case(f"{size}-qkv{end}", M, hidden, qkv, norm=True, real=True, every=every)
        yield qmm_case(
            f"{size}-gate_up{end}", M, hidden, gate_up, norm=True, activation="swiglu", real=True, every=every
        )
        yield qmm_case(f"{size}-down{end}", M, inner, down, residual=True, real=True, every=every)
    head = segment(
        text.vocab_size, "language_model." + ("model.embed_tokens" if text.tie_word_embeddings else "lm_head")
    )
    for M, end in ((1, ""), (8, "-m8")):
        yield qmm_case(f"{size}-lm_head{end}", M, hidden, [head], norm=True, real=True, every=97)


def embedding_cases(size: str, text: TextConfig) -> Iterator[Case]:
    def case(name: str, N: int, K: int, bits: int, tokens: int, real: bool = False) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            table = quantized(rng, N, K, bits) if bits else plain(rng, N, K, mx.bfloat16)
            return {"tokens": mx.array(rng.integers(0, N, size=(1, tokens))), "table": table, "dtype": dtype}

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            table = arguments["table"]
            return arguments["tokens"].size * (table.nbytes // table.rows) + results[0].nbytes

        return Case("embedding", name, make, moved, real)

    yield case("plain", 11, 72, 0, 5)
    for bits in (2, 3, 4, 5, 6, 8):
        yield case(f"b{bits}", 100, 192, bits, 9)
    yield case(size, text.vocab_size, text.hidden_size, 5, 1, real=True)


def token_mask(rng: np.random.Generator, B: int, T: int) -> mx.array:
    """Left padding of random lengths, and one hole."""
    mask = np.arange(T) >= rng.integers(0, max(1, T // 2), size=(B, 1))
    mask[0, T // 2] = False
    return mx.array(mask)


def conv1d_cases(text: TextConfig) -> Iterator[Case]:
    def case(B: int, T: int, C: int, state: bool = True, mask: bool = False, real: bool = False) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            return {
                "x": normal(rng, B, T, C, dtype=dtype),
                "weight": normal(rng, C, 4, scale=0.5),
                "state": normal(rng, B, 3, C, dtype=dtype) if state else None,
                "mask": token_mask(rng, B, T) if mask else None,
            }

        name = f"b{B}t{T}c{C}" + ("" if state else "-fresh") + ("-masked" if mask else "")
        return Case("conv1d", name, make, real=real)

    for T in (1, 2, 3, 63, 64, 65, 200):
        yield case(1, T, 33)
    yield case(3, 5, 96, state=False)
    yield case(2, 9, 40, mask=True)
    yield case(1, 1, text.conv_dim, real=True)


def delta_gates(rng: np.random.Generator, B: int, T: int, Hv: int, dtype: mx.Dtype) -> Arguments:
    return {
        "a": normal(rng, B, T, Hv, dtype=dtype),
        "b": normal(rng, B, T, Hv, dtype=dtype),
        "A_log": normal(rng, Hv, scale=0.7) - 1.0,
        "dt_bias": normal(rng, Hv, scale=0.5),
    }


def gated_delta_cases() -> Iterator[Case]:
    def case(B: int, T: int, Hk: int, ratio: int, D: int, state: bool = True, mask: bool = False) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            Hv = Hk * ratio
            return {
                "q": normal(rng, B, T, Hk, D, dtype=dtype),
                "k": normal(rng, B, T, Hk, D, dtype=dtype),
                "v": normal(rng, B, T, Hv, D, dtype=dtype),
                **delta_gates(rng, B, T, Hv, dtype),
                "state": normal(rng, B, Hv, D, D, scale=0.2) if state else None,
                "mask": token_mask(rng, B, T) if mask else None,
            }

        name = f"b{B}t{T}h{Hk}x{ratio}d{D}" + ("" if state else "-fresh") + ("-masked" if mask else "")
        return Case("gated_delta", name, make)

    for T in (1, 2, 16, 17, 63, 64, 65, 200):
        yield case(1, T, 1, 2, 128)
    for ratio in (1, 2, 3):
        yield case(2, 5, 2, ratio, 64)
        yield case(1, 70, 1, ratio, 64)
    yield case(2, 3, 1, 2, 64, state=False)
    yield case(2, 9, 1, 2, 64, mask=True)
    yield case(2, 130, 1, 3, 64, mask=True)
    yield case(1, 7, 1, 2, 36)
    yield case(1, 90, 2, 2, 36)


def gated_norm_cases(size: str, text: TextConfig) -> Iterator[Case]:
    def case(name: str, *shape: int, real: bool = False) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            y, z = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype, scale=2.0)
            return {"y": y, "z": z, "norm": 1 + normal(rng, shape[-1], scale=0.1), "eps": 1e-6}

        return Case("gated_norm", name, make, real=real)

    for shape in ((1, 17, 2, 128), (2, 3, 3, 36), (300, 64)):
        yield case("x".join(map(str, shape)), *shape)
    heads = text.linear_num_value_heads
    yield case(f"{size}-m512", 1, 512, heads, text.linear_value_head_dim, real=True)


def delta_mixer_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        B: int, T: int, Hk: int, ratio: int, D: int, state: bool = True, mask: bool = False, real: bool = False
    ) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            Hv = Hk * ratio
            gates = delta_gates(rng, 1, 1, Hv, dtype)
            conv_dim = (2 * Hk + Hv) * D
            return {
                "projection": normal(rng, B, T, conv_dim + Hv * D + 2 * Hv, dtype=dtype),
                "conv_weight": normal(rng, conv_dim, 4, scale=0.5),
                "A_log": gates["A_log"],
                "dt_bias": gates["dt_bias"],
                "norm": 1 + normal(rng, D, scale=0.1),
                "conv_state": normal(rng, B, 3, conv_dim, dtype=dtype) if state else None,
                "delta_state": normal(rng, B, Hv, D, D, scale=0.2) if state else None,
                "key_heads": Hk,
                "key_dim": D,
                "mask": token_mask(rng, B, T) if mask else None,
            }

        name = f"b{B}t{T}h{Hk}x{ratio}d{D}" + ("" if state else "-fresh") + ("-masked" if mask else "")

        def flops(arguments: Arguments) -> int:
            return 7 * B * T * Hk * ratio * D * D  # decay, S k, the rank-one update, S q

        return Case("delta_mixer", name, make, real=real, flops=flops)

    for ratio in (1, 2, 3):
        yield case(1, 1, 2, ratio, 64)
        yield case(2, 4, 1, ratio, 128)
    yield case(1, 3, 2, 2, 36)
    yield case(2, 1, 1, 2, 64, state=False)
    yield case(2, 7, 1, 2, 64, mask=True)
    heads = text.linear_num_key_heads
    ratio = text.linear_num_value_heads // heads
    yield case(1, 1, heads, ratio, text.linear_key_head_dim, real=True)


def attention_prepare_cases(text: TextConfig) -> Iterator[Case]:
    def case(B: int, T: int, Hq: int, Hkv: int, D: int, S: int, offset: int, axes: int = 0, real: bool = False) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            half = D // 8  # rotary on a quarter of the head, in pairs
            shape = {0: None, 1: (B, T), 3: (3, B, T)}[axes]
            return {
                "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
                "q_norm": 1 + normal(rng, D, scale=0.1),
                "k_norm": 1 + normal(rng, D, scale=0.1),
                "keys": normal(rng, B, Hkv, S, D, dtype=dtype),
                "values": normal(rng, B, Hkv, S, D, dtype=dtype),
                "offset": offset,
                "rope_theta": 1e7,
                "rope_dim": 2 * half,
                "rope_sections": (half - 2 * (half // 3), half // 3, half // 3),
                "positions": mx.array(rng.integers(0, 90, size=shape)) if shape else None,
            }

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            norms = arguments["q_norm"].nbytes + arguments["k_norm"].nbytes
            # The gates, interleaved with the queries, stay where they are.
            return norms + 2 * (Hq + 2 * Hkv) * B * T * D * arguments["projection"].itemsize

        return Case("attention_prepare", f"b{B}t{T}h{Hq}:{Hkv}d{D}at{offset}axes{axes}", make, moved, real)

    yield case(1, 1, 2, 1, 256, 8, 3)
    yield case(2, 5, 6, 2, 64, 16, 0)
    yield case(2, 5, 4, 4, 128, 16, 11, axes=1)
    yield case(2, 7, 3, 1, 256, 7, 0, axes=3)
    yield case(1, 1, text.num_attention_heads, text.num_key_value_heads, text.head_dim, 2048, 2000, real=True)


def attention_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        B: int, T: int, Hq: int, Hkv: int, D: int, S: int, length: int, padded: bool = False, real: bool = False
    ) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            return {
                "q": normal(rng, B, Hq, T, D, dtype=dtype),
                "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
                "keys": normal(rng, B, Hkv, S, D, dtype=dtype),
                "values": normal(rng, B, Hkv, S, D, dtype=dtype),
                "length": length,
                "scale": D**-0.5,
                "start": mx.array(rng.integers(0, length, size=B)) if padded else None,
            }

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            cache = 2 * B * Hkv * length * D * arguments["keys"].itemsize
            return cache + arguments["q"].nbytes + 2 * results[0].nbytes

        def flops(arguments: Arguments) -> int:
            return 4 * B * Hq * T * length * D

        name = f"b{B}t{T}h{Hq}:{Hkv}d{D}l{length}" + ("-padded" if padded else "")
        return Case("attention", name, make, moved, real, flops)

    yield case(1, 1, 2, 1, 256, 9, 9)
    yield case(2, 1, 6, 2, 64, 100, 70)
    yield case(1, 65, 4, 4, 128, 70, 65)
    yield case(2, 9, 3, 1, 256, 140, 131)
    yield case(3, 6, 2, 1, 64, 80, 75, padded=True)
    yield case(2, 70, 2, 1, 64, 70, 70, padded=True)
    yield case(1, 1, 4, 1, 64, 2500, 2345)
    yield case(2, 3, 4, 2, 64, 2100, 2049, padded=True)
    yield case(1, 40, 6, 1, 72, 200, 150)
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    yield case(1, 1, heads, keys, text.head_dim, 2048, 2000, real=True)
    yield case(1, 1, heads, keys, text.head_dim, 16384, 16000, real=True)


def sample_cases(text: TextConfig) -> Iterator[Case]:
    def case(name: str, B: int, V: int, *, masks: int | None = None, real: bool = False, **filters: float) -> Case:
        """masks: the rows of each mask."""

        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            drawn = None if "greedy" in name else mx.array(rng.integers(0, 2**64, size=B, dtype=np.uint64))
            arguments: Arguments = {"logits": normal(rng, B, V, dtype=dtype, scale=3.0), "random": drawn, **filters}
            if masks:
                for key, share in (("allowed", 0.7), ("prompt", 0.2), ("generated", 0.2)):
                    arguments[key] = mx.array(rng.random((masks, int(filters.get("vocab_size", V)))) < share)
            return arguments

        return Case("sample", name, make, real=real)

    yield case("greedy", 3, 1500)
    yield case("temperature", 5, 1024, temperature=0.8)
    yield case("top_k", 4, 5003, temperature=0.7, top_k=20)
    yield case("top_k-many", 4, 2100, temperature=1.5, top_k=900)
    yield case("top_p", 4, 5003, temperature=1.5, top_p=0.9)
    yield case("min_p", 4, 1029, min_p=0.05)
    yield case("all", 6, 3000, masks=1, temperature=1.2, top_k=50, top_p=0.8, min_p=0.02, vocab_size=2990)
    yield case("penalties", 3, 77, masks=3, top_p=0.9, presence_penalty=1.5, repetition_penalty=1.1)
    yield case("greedy-penalties", 3, 2049, masks=3, presence_penalty=-0.5, repetition_penalty=0.7)
    vocabulary = text.vocab_size
    yield case("vocabulary-greedy", 1, vocabulary, real=True)
    yield case("vocabulary-temperature", 1, vocabulary, real=True, temperature=0.8)
    yield case("vocabulary-top_p", 1, vocabulary, real=True, temperature=0.8, top_p=0.95)
    yield case("vocabulary-top_k-top_p", 1, vocabulary, real=True, temperature=0.6, top_k=20, top_p=0.95)
    yield case(
        "vocabulary-penalties", 1, vocabulary, masks=1, real=True, temperature=0.7, top_k=20, presence_penalty=1.5
    )


def cases_of(size: str) -> list[Case]:
    """The small cases of every op, which are those of any size, and the real ones at the shapes of ``size`` ("9B")."""
    text = config_of(size).text
    name = size.lower()
    return [
        *qmm_cases(),
        *qmm_model_cases(name, text),
        *embedding_cases(name, text),
        *conv1d_cases(text),
        *gated_delta_cases(),
        *gated_norm_cases(name, text),
        *delta_mixer_cases(text),
        *attention_prepare_cases(text),
        *attention_cases(text),
        *sample_cases(text),
    ]


# What tests run, on an emulated GPU too: of the real shapes those of one token.
CASES = [case for case in cases_of("9B") if not case.name.endswith(("-m8", "-m512"))]
