"""The cases of an attention layer: attention_prepare, attention, attention_rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from mlx_delta.bench.cases.case import Arguments, Case
from mlx_delta.bench.cases.draws import normal
from mlx_delta.config import TextConfig
from mlx_delta.ops import quantize_kv


def cases(size: str, text: TextConfig) -> Iterator[Case]:
    yield from attention_prepare_cases(text)
    yield from attention_cases(text)
    yield from attention_rows_cases(text)


def attention_prepare_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        B: int,
        T: int,
        Hq: int,
        Hkv: int,
        D: int,
        S: int,
        offset: int,
        axes: int = 0,
        real: bool = False,
        bits: int | None = None,
    ) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            shape = {0: None, 1: (B, T), 3: (3, B, T)}[axes]
            return {
                "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
                **prepare_parameters(rng, D),
                **cached(rng, (B, Hkv, S, D), dtype, bits),
                "offset": offset,
                "positions": mx.array(rng.integers(0, 90, size=shape)) if shape else None,
            }

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            norms = arguments["q_norm"].nbytes + arguments["k_norm"].nbytes
            # The gates, interleaved with the queries, stay where they are.
            return norms + 2 * (Hq + 2 * Hkv) * B * T * D * arguments["projection"].itemsize

        name = f"b{B}t{T}h{Hq}:{Hkv}d{D}at{offset}axes{axes}" + ("-kv8" if bits else "")
        return Case("attention_prepare", name, make, moved, real, states=("keys", "values"))

    yield case(1, 1, 2, 1, 256, 8, 3)
    yield case(2, 5, 6, 2, 64, 16, 0)
    yield case(2, 5, 4, 4, 128, 16, 11, axes=1)
    yield case(2, 7, 3, 1, 256, 7, 0, axes=3)
    yield case(2, 3, 2, 1, 64, 7, 2, bits=8)
    yield case(1, 2, 2, 2, 36, 5, 1, axes=1, bits=8)
    for bits in (8, None):
        heads, keys = text.num_attention_heads, text.num_key_value_heads
        yield case(1, 1, heads, keys, text.head_dim, 2048, 2000, real=True, bits=bits)


def prepare_parameters(rng: np.random.Generator, D: int) -> Arguments:
    half = D // 8  # rotary on a quarter of the head, in pairs
    return {
        "q_norm": 1 + normal(rng, D, scale=0.1),
        "k_norm": 1 + normal(rng, D, scale=0.1),
        "rope_theta": 1e7,
        "rope_dim": 2 * half,
        "rope_sections": (half - 2 * (half // 3), half // 3, half // 3),
    }


def cached(rng: np.random.Generator, shape: Sequence[int], dtype: mx.Dtype, bits: int | None) -> Arguments:
    """keys and values [B, Hkv, S, D] = ``shape``, as a cache holds them."""
    drawn = {name: normal(rng, *shape, dtype=dtype) for name in ("keys", "values")}
    return drawn if bits is None else {name: quantize_kv(x) for name, x in drawn.items()}


def attention_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        B: int,
        T: int,
        Hq: int,
        Hkv: int,
        D: int,
        S: int,
        length: int,
        padded: bool = False,
        real: bool = False,
        bits: int | None = None,
    ) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            return {
                "q": normal(rng, B, Hq, T, D, dtype=dtype),
                "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
                **cached(rng, (B, Hkv, S, D), dtype, bits),
                "length": length,
                "scale": D**-0.5,
                "start": mx.array(rng.integers(0, length, size=B)) if padded else None,
            }

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            cache = 2 * B * Hkv * length * arguments["keys"].shape[-1] * arguments["keys"].itemsize
            return cache + arguments["q"].nbytes + 2 * results[0].nbytes

        def flops(arguments: Arguments) -> int:
            return 4 * B * Hq * T * length * D

        name = f"b{B}t{T}h{Hq}:{Hkv}d{D}l{length}" + ("-padded" if padded else "") + ("-kv8" if bits else "")
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
    yield case(2, 1, 6, 2, 64, 100, 70, bits=8)
    yield case(2, 9, 4, 1, 256, 140, 131, bits=8)
    yield case(1, 3, 4, 2, 128, 2100, 2049, padded=True, bits=8)
    yield case(1, 40, 6, 1, 72, 200, 150, bits=8)
    yield case(1, 5, 2, 2, 36, 70, 67, bits=8)
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    for rows, length, bits in ((2048, 2000, None), (2048, 2000, 8), (16384, 16000, None)):
        yield case(1, 1, heads, keys, text.head_dim, rows, length, real=True, bits=bits)


def attention_rows_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        name: str,
        Hq: int,
        Hkv: int,
        D: int,
        offsets: Sequence[int],
        counts: Sequence[int] | None = None,
        pictures: bool = False,
        bits: int | None = None,
        real: bool = False,
    ) -> Case:
        """offsets, counts: tokens of each sequence, before the new ones and new."""
        of_each = counts or [1] * len(offsets)
        lengths = [offset + count for offset, count in zip(offsets, of_each, strict=True)]

        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            R = sum(of_each)
            rows = [cached(rng, (1, Hkv, length + i % 3, D), dtype, bits) for i, length in enumerate(lengths)]
            return {
                "projection": normal(rng, R, 1, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
                **prepare_parameters(rng, D),
                "keys": [each["keys"] for each in rows],
                "values": [each["values"] for each in rows],
                "offsets": list(offsets),
                "counts": counts and list(counts),
                "positions": mx.array(rng.integers(0, 90, size=(3, R))) if pictures else None,
                "scale": D**-0.5,
            }

        def moved(arguments: Arguments, results: list[mx.array]) -> int:
            row = 2 * Hkv * arguments["keys"][0].shape[-1] * arguments["keys"][0].itemsize
            return row * sum(lengths) + arguments["projection"].nbytes + results[0].nbytes

        def flops(arguments: Arguments) -> int:
            return 4 * Hq * D * sum(count * length for count, length in zip(of_each, lengths, strict=True))

        return Case("attention_rows", name + ("-kv8" if bits else ""), make, moved, real, flops)

    # Splits of a GPU and stretches of a CPU begin and end here; more sequences than a launch takes.
    yield case("9h4:2d64", 4, 2, 64, [0, 126, 127, 1023, 5, 128, 2345, 256, 63])
    yield case("mixed-h2:1d64", 2, 1, 64, [0, 125, 1020, 7], [1, 4, 8, 16], bits=8)
    yield case("mixed-h6:2d128", 6, 2, 128, [300, 0, 60], [3, 5, 1], pictures=True)
    yield case("2h3:1d36", 3, 1, 36, [70, 11], [1, 2])
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    unequal = [250 * (i + 1) for i in range(8)]
    yield case(f"8h{heads}:{keys}-m8", heads, keys, text.head_dim, unequal, real=True)
