"""The cases of a gated-delta layer: conv1d, gated_delta, gated_norm, delta_mixer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from mlx_delta.bench.cases.case import Arguments, Case
from mlx_delta.bench.cases.draws import normal, token_mask
from mlx_delta.config import TextConfig


def cases(size: str, text: TextConfig) -> Iterator[Case]:
    yield from conv1d_cases(text)
    yield from gated_delta_cases()
    yield from gated_norm_cases(size, text)
    yield from delta_mixer_cases(text)
    yield from delta_mixer_rows_cases(text)


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
        return Case("conv1d", name, make, real=real, states=("state",), over_time=("x", "mask"), sliced={"x": 1})

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
        over_time, sliced = ("q", "k", "v", "a", "b", "mask"), {"q": 2, "k": 2, "v": 2, "a": 1, "b": 1}
        return Case("gated_delta", name, make, states=("state",), over_time=over_time, sliced=sliced)

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

        return Case("gated_norm", name, make, real=real, sliced={"z": min(2, len(shape) - 1)})

    for shape in ((1, 17, 2, 128), (2, 3, 3, 36), (300, 64)):
        yield case("x".join(map(str, shape)), *shape)
    heads = text.linear_num_value_heads
    yield case(f"{size}-m512", 1, 512, heads, text.linear_value_head_dim, real=True)


def mixer_widths(Hk: int, Hv: int, D: int) -> tuple[int, int]:
    """Of the convolution, and of the projection."""
    conv_dim = (2 * Hk + Hv) * D
    return conv_dim, conv_dim + Hv * D + 2 * Hv


def mixer_parameters(rng: np.random.Generator, Hk: int, Hv: int, D: int, dtype: mx.Dtype) -> Arguments:
    gates = delta_gates(rng, 1, 1, Hv, dtype)
    return {
        "conv_weight": normal(rng, mixer_widths(Hk, Hv, D)[0], 4, scale=0.5),
        "A_log": gates["A_log"],
        "dt_bias": gates["dt_bias"],
        "norm": 1 + normal(rng, D, scale=0.1),
        "key_heads": Hk,
        "key_dim": D,
    }


def delta_mixer_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        B: int,
        T: int,
        Hk: int,
        ratio: int,
        D: int,
        state: bool = True,
        mask: bool = False,
        real: bool = False,
        pending: int = 0,
        keep: bool = True,
    ) -> Case:
        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            Hv = Hk * ratio
            conv_dim, width = mixer_widths(Hk, Hv, D)
            return {
                "projection": normal(rng, B, T, width, dtype=dtype),
                **mixer_parameters(rng, Hk, Hv, D, dtype),
                "conv_state": normal(rng, B, 3, conv_dim, dtype=dtype) if state else None,
                "delta_state": normal(rng, B, Hv, D, D, scale=0.2) if state else None,
                "mask": token_mask(rng, B, T) if mask else None,
                "pending": normal(rng, B, pending, width, dtype=dtype) if pending else None,
                "keep": keep,
            }

        name = f"b{B}t{T}h{Hk}x{ratio}d{D}" + ("" if state else "-fresh") + ("-masked" if mask else "")
        name += (f"-after{pending}" if pending else "") + ("" if keep else "-back")

        def flops(arguments: Arguments) -> int:
            return 7 * B * (pending + T) * Hk * ratio * D * D  # decay, S k, the rank-one update, S q

        states = ("conv_state", "delta_state")
        over_time = ("projection", "mask") if keep and not pending else ()  # else two calls are not one
        return Case("delta_mixer", name, make, real=real, flops=flops, states=states, over_time=over_time)

    for ratio in (1, 2, 3):
        yield case(1, 1, 2, ratio, 64)
        yield case(2, 4, 1, ratio, 128)
    yield case(1, 3, 2, 2, 36)
    yield case(2, 1, 1, 2, 64, state=False)
    yield case(2, 7, 1, 2, 64, mask=True)
    yield case(1, 4, 1, 2, 64, keep=False)
    yield case(1, 1, 1, 3, 64, pending=2)
    yield case(2, 3, 2, 2, 64, mask=True, pending=4, keep=False)
    heads = text.linear_num_key_heads
    ratio = text.linear_num_value_heads // heads
    yield case(1, 1, heads, ratio, text.linear_key_head_dim, real=True)
    yield case(1, 4, heads, ratio, text.linear_key_head_dim, real=True, pending=3, keep=False)


def delta_mixer_rows_cases(text: TextConfig) -> Iterator[Case]:
    def case(
        name: str,
        Hk: int,
        ratio: int,
        D: int,
        counts: Sequence[int],
        pending: Sequence[int] = (),
        back: Sequence[int] = (),
        fresh: Sequence[int] = (),
        real: bool = False,
    ) -> Case:
        """back: of which sequences the tokens may be taken back; fresh: which have not begun."""

        def make(dtype: mx.Dtype, rng: np.random.Generator) -> Arguments:
            Hv = Hk * ratio
            conv_dim, width = mixer_widths(Hk, Hv, D)
            sequences = range(len(counts))
            return {
                "projection": normal(rng, sum(counts), 1, width, dtype=dtype),
                **mixer_parameters(rng, Hk, Hv, D, dtype),
                "conv_states": [None if i in fresh else normal(rng, 1, 3, conv_dim, dtype=dtype) for i in sequences],
                "delta_states": [None if i in fresh else normal(rng, 1, Hv, D, D, scale=0.2) for i in sequences],
                "counts": list(counts),
                "pending": [normal(rng, 1, n, width, dtype=dtype) if n else None for n in pending] or None,
                "keep": [i not in back for i in sequences],
            }

        def flops(arguments: Arguments) -> int:
            return 7 * (sum(counts) + sum(pending)) * Hk * ratio * D * D

        return Case("delta_mixer_rows", name, make, real=real, flops=flops)

    yield case("9h2x2d64", 2, 2, 64, [1] * 9, fresh=[4])
    yield case("3h1x3d128", 1, 3, 128, [1] * 3)
    yield case("2h2x1d36", 2, 1, 36, [1, 2])
    yield case("mixed-h1x2d64", 1, 2, 64, [1, 4, 1, 8, 1, 3, 1, 2], [0, 3, 2, 0, 0, 8, 1, 1], back=[1, 3, 4, 5])
    heads = text.linear_num_key_heads
    ratio = text.linear_num_value_heads // heads
    yield case(f"8h{heads}x{ratio}-m8", heads, ratio, text.linear_key_head_dim, [1] * 8, real=True)
