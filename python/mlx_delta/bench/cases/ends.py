"""The cases of what lies around the layers: embedding, sample."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from mlx_delta.bench.cases.case import Arguments, Case
from mlx_delta.bench.cases.draws import normal, plain, quantized
from mlx_delta.config import TextConfig


def cases(size: str, text: TextConfig) -> Iterator[Case]:
    yield from embedding_cases(size, text)
    yield from sample_cases(text)


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
