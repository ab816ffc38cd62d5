"""The cases of qmm: widths, layouts and rows in small, and every matrix of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.bench.cases.case import DTYPES, Arguments, Case
from mlx_delta.bench.cases.draws import normal, plain, quantized
from mlx_delta.config import TextConfig
from mlx_delta.conversion.recipe import choose
from mlx_delta.model.network import LAYERS


def thin(matrix: ops.Matrix, every: int) -> ops.Matrix:
    """Every ``every``-th row."""
    if matrix.scales is None or matrix.biases is None:
        return ops.Matrix.plain(matrix.weight[::every])
    weight, scales, biases = matrix.weight[::every], matrix.scales[::every], matrix.biases[::every]
    return ops.Matrix.affine(weight, scales, biases, matrix.bits, matrix.group_size)


@dataclass(frozen=True)
class QmmCase(Case):
    """``every`` compares only every so many-th row of the matrices: mlx needs minutes to dequantize a vocabulary."""

    every: int = 1

    @property
    def thinned(self) -> bool:
        return self.every > 1

    def compare(self, arguments: Arguments) -> Iterator[tuple[mx.array, mx.array]]:
        """(found, expected), of every ``every``-th output feature."""
        if not self.thinned:
            yield from super().compare(arguments)
            return
        thinned = [thin(matrix, self.every) for matrix in arguments["segments"]]
        starts = np.cumsum([0, *(matrix.rows for matrix in arguments["segments"])])
        chosen = [np.arange(start, end, self.every) for start, end in pairwise(starts)]
        columns = mx.array(chosen[0] if arguments["activation"] else np.concatenate(chosen))
        residual = arguments["residual"]
        fewer = {"segments": thinned, "residual": None if residual is None else residual[:, columns]}
        (found,), (expected,) = self.run(arguments), self.reference({**arguments, **fewer})
        yield found[:, columns], expected


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

    return QmmCase("qmm", name, make, real=real, flops=flops, every=every)


def cases(size: str, text: TextConfig) -> Iterator[Case]:
    yield from small_cases()
    yield from model_cases(size, text)


def small_cases() -> Iterator[Case]:
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


def model_cases(size: str, text: TextConfig) -> Iterator[Case]:
    """Every matrix of a model in the recipe, fused as its layers fuse them: one row (decode), 8 (batches), a prompt.

    o_proj has the shape and the width of out_proj in every published size.
    """
    recipe = choose("unsloth", None, 64, QWEN3_5.recipes)
    layer, hidden, inner = f"{LAYERS}.0", text.hidden_size, text.intermediate_size
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
