"""The cases of experts: route and experts, in small, and at the shapes of a model that has them."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.bench.cases.case import Arguments, Case
from mlx_delta.bench.cases.draws import normal, plain, quantized
from mlx_delta.config import ExpertsConfig, TextConfig

Width = tuple[int, int] | mx.Dtype  # bits and group size, or a dtype


def _matrix(rng: np.random.Generator, N: int, K: int, width: Width) -> ops.Matrix:
    return quantized(rng, N, K, *width) if isinstance(width, tuple) else plain(rng, N, K, width)


def route_case(name: str, M: int, K: int, E: int, k: int, router: Width, gate: Width, real: bool = False) -> Case:
    def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
        return {
            "x": normal(rng, M, K, dtype=dtype),
            "router": _matrix(rng, E, K, router),
            "shared_gate": _matrix(rng, 1, K, gate),
            "norm": 1 + normal(rng, K, scale=0.1),
            "chosen": k,
        }

    return Case("route", name, make, real=real)


def experts_case(
    name: str, M: int, K: int, N: int, E: int, k: int, widths: tuple[Width, Width, Width], shared: Width,
    *, shared_size: int | None = None, sequences: int | None = None, real: bool = False,
) -> Case:  # fmt: skip
    """N: rows of an expert's gate and up. widths: of gate, up and down. sequences: x is [sequences, M / sequences, K]
    instead of [M, K]."""
    lead, shared_rows = (M,) if sequences is None else (sequences, M // sequences), shared_size or N

    # Packed weights are drawn small: what comes of them is to count beside x.
    small = 0.05 if all(isinstance(width, tuple) for width in widths) else 0.5

    def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
        chosen = np.stack([rng.permutation(E)[:k] for _ in range(M)]).astype(np.uint32)
        weights = np.concatenate([rng.dirichlet(np.ones(k), M), rng.random((M, 1))], axis=1).astype(np.float32)
        sizes = ((E * N, K), (E * N, K), (E * K, N))
        return {
            "x": normal(rng, *lead, K, dtype=dtype, scale=small),
            "chosen": mx.array(chosen).reshape(*lead, k),
            "weights": mx.array(weights).reshape(*lead, k + 1),
            "matrices": [_matrix(rng, *size, width) for size, width in zip(sizes, widths, strict=True)],
            "shared": [_matrix(rng, *size, shared) for size in ((shared_rows, K), (shared_rows, K), (K, shared_rows))],
            "norm": (1 + normal(rng, K, scale=0.1)) * (0.5 / small),
        }

    def moved(arguments: Arguments, results: list[mx.array]) -> int:
        """Of the experts those that any row has chosen."""
        read = len(np.unique(np.array(arguments["chosen"])))
        nbytes = sum(m.nbytes for m in arguments["matrices"]) * read // E + sum(m.nbytes for m in arguments["shared"])
        others = [arguments[name] for name in ("x", "chosen", "weights", "norm")]
        return nbytes + sum(a.nbytes for a in (*others, *results))

    def flops(arguments: Arguments) -> int:
        return 2 * M * 3 * K * (k * N + shared_rows)

    return Case("experts", name, make, moved, real, flops)


def cases(size: str, text: TextConfig) -> Iterator[Case]:
    """The small ones; and where ``text`` has experts, those of a token, of 8 and of a prompt."""
    yield from small_cases()
    if text.experts is not None:
        yield from model_cases(size, text, text.experts)


def small_cases() -> Iterator[Case]:
    half, single = mx.bfloat16, mx.float32
    yield route_case("plain", 3, 96, 40, 4, half, half)
    yield route_case("float32", 1, 200, 7, 7, single, half)
    yield route_case("b8", 2, 192, 65, 1, (8, 64), (8, 64))
    yield route_case("prompt", 37, 128, 256, 8, (8, 64), half)
    yield experts_case("b34", 3, 192, 64, 5, 2, ((3, 64), (3, 64), (4, 64)), (6, 64))
    yield experts_case("b45-one", 1, 192, 512, 5, 2, ((4, 64), (4, 64), (5, 64)), (8, 64))
    yield experts_case(
        "b56-one-each", 3, 128, 2048, 4, 1, ((5, 64), (5, 64), (6, 64)), (8, 64), shared_size=64, sequences=3
    )
    yield experts_case("mixed", 16, 128, 128, 9, 8, ((8, 64), (4, 128), (8, 32)), half, shared_size=64)
    yield experts_case("plain", 5, 72, 40, 6, 2, (half, half, half), half, shared_size=24)
    yield experts_case("float32", 2, 64, 27, 3, 3, (single, single, half), single)
    yield experts_case("prompt", 70, 128, 64, 6, 2, ((4, 64), (4, 64), (5, 64)), (8, 64), sequences=2)
    yield experts_case("prompt-plain", 33, 64, 32, 3, 2, (half, half, half), half)
    yield experts_case("prompt-long", 1100, 64, 32, 3, 2, ((4, 64), (4, 64), (4, 32)), (8, 32))


def model_cases(size: str, text: TextConfig, experts: ExpertsConfig) -> Iterator[Case]:
    """In the recipe at 4 bits."""
    K, widths, shared = text.hidden_size, ((4, 64), (4, 64), (5, 64)), (8, 64)
    for M, end in ((1, ""), (8, "-m8"), (512, "-m512")):
        yield route_case(f"{size}{end}", M, K, experts.count, experts.chosen, mx.bfloat16, mx.bfloat16, real=True)
        yield experts_case(
            f"{size}{end}", M, K, text.intermediate_size, experts.count, experts.chosen, widths, shared,
            shared_size=experts.shared_size, real=True,
        )  # fmt: skip
