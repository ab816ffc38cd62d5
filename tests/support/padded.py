"""Left-padded batches, and each of their sequences alone: an op has to give both the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.bench.cases import Arguments, as_list
from mlx_delta.bench.cases.attention import cached
from mlx_delta.bench.cases.delta import delta_gates
from mlx_delta.bench.cases.draws import normal

# Where time is: of the arguments that a sequence alone has less of, and of the results. The rest is states.
_TIME = {"x": 1, "projection": 1, "q": 1, "k": 1, "v": 1, "a": 1, "b": 1}
_RESULT_TIME = {
    "conv1d": (1, None),
    "gated_delta": (1, None),
    "delta_mixer": (1, None, None),
    "attention_prepare": (2, 2, 2),
    "attention": (None,),
}
_SHARED = {"weight", "conv_weight", "A_log", "dt_bias", "norm", "q_norm", "k_norm"}  # by all sequences


@dataclass(frozen=True)
class Batch:
    """``op`` on a batch: row b begins after paddings[b] tokens, or rows of the cache."""

    op: str
    name: str
    paddings: tuple[int, ...]
    together: Arguments

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def alone(self, b: int) -> Arguments:
        """The arguments of row b, and nothing that says of padding."""
        found: Arguments = {}
        for name, value in self.together.items():
            if not isinstance(value, mx.array) or name in _SHARED:
                found[name] = value
            elif name not in ("mask", "start", "positions"):
                found[name] = value[b : b + 1]
        axes = {"keys": 2, "values": 2} if self.op == "attention" else _TIME
        for name in axes.keys() & found.keys():
            found[name] = after(found[name], axes[name], self.paddings[b])
        if self.op == "attention":
            found["length"] -= self.paddings[b]
        return found

    def check(self, run: Callable[[list[mx.array]], list[mx.array]]) -> None:
        """run evaluates results of the op."""

        def results(arguments: Arguments) -> list[mx.array]:
            return run(as_list(getattr(ops, self.op)(**arguments)))

        together = results(self.together)
        for b, padding in enumerate(self.paddings):
            rows = [part[b : b + 1] for part in together]
            for row, expected, time in zip(rows, results(self.alone(b)), _RESULT_TIME[self.op], strict=True):
                tokens = row if time is None else after(row, time, padding)
                if self.op == "attention_prepare" and tokens.shape[2] != expected.shape[2]:  # a cache of more rows
                    expected = expected[:, :, : tokens.shape[2]]
                assert mx.array_equal(tokens, expected), f"{padding} tokens of padding"


def after(array: mx.array, axis: int, start: int) -> mx.array:
    return mx.moveaxis(mx.moveaxis(array, axis, 0)[start:], 0, axis)


def padded_batches(dtype: mx.Dtype) -> Iterator[Batch]:
    yield gated_delta(dtype, 201, (0, 1, 37, 64, 130, 184))  # the last brings 17 tokens: less would not go by chunks
    yield gated_delta(dtype, 65, (1, 0, 48))
    yield conv1d(dtype, 75, (0, 1, 30, 72, 74))
    yield delta_mixer(dtype, 13, (0, 2, 12))
    yield attention_prepare(dtype, 21, (0, 7, 20))
    yield attention(dtype, 1, 701, (0, 333, 650, 700))
    yield attention(dtype, 3, 4300, (0, 3000, 1))
    yield attention(dtype, 2, 1400, (0, 333, 1398), bits=8)


def mask_of(T: int, paddings: tuple[int, ...]) -> mx.array:
    return mx.arange(T) >= mx.array(paddings)[:, None]


def gated_delta(dtype: mx.Dtype, T: int, paddings: tuple[int, ...]) -> Batch:
    rng, B, Hk, Hv, D = np.random.default_rng(T), len(paddings), 1, 2, 64
    together = {
        "q": normal(rng, B, T, Hk, D, dtype=dtype),
        "k": normal(rng, B, T, Hk, D, dtype=dtype),
        "v": normal(rng, B, T, Hv, D, dtype=dtype),
        **delta_gates(rng, B, T, Hv, dtype),
        "state": normal(rng, B, Hv, D, D, scale=0.2),
        "mask": mask_of(T, paddings),
    }
    return Batch("gated_delta", f"t{T}", paddings, together)


def conv1d(dtype: mx.Dtype, T: int, paddings: tuple[int, ...]) -> Batch:
    rng, B, C = np.random.default_rng(T), len(paddings), 41
    together = {
        "x": normal(rng, B, T, C, dtype=dtype),
        "weight": normal(rng, C, 4, scale=0.5),
        "state": normal(rng, B, 3, C, dtype=dtype),
        "mask": mask_of(T, paddings),
    }
    return Batch("conv1d", f"t{T}", paddings, together)


def delta_mixer(dtype: mx.Dtype, T: int, paddings: tuple[int, ...]) -> Batch:
    rng, B, Hk, Hv, D = np.random.default_rng(T), len(paddings), 1, 2, 64
    gates = delta_gates(rng, 1, 1, Hv, dtype)
    conv_dim = (2 * Hk + Hv) * D
    together = {
        "projection": normal(rng, B, T, conv_dim + Hv * D + 2 * Hv, dtype=dtype),
        "conv_weight": normal(rng, conv_dim, 4, scale=0.5),
        "A_log": gates["A_log"],
        "dt_bias": gates["dt_bias"],
        "norm": 1 + normal(rng, D, scale=0.1),
        "conv_state": normal(rng, B, 3, conv_dim, dtype=dtype),
        "delta_state": normal(rng, B, Hv, D, D, scale=0.2),
        "key_heads": Hk,
        "key_dim": D,
        "mask": mask_of(T, paddings),
    }
    return Batch("delta_mixer", f"t{T}", paddings, together)


def attention_prepare(dtype: mx.Dtype, T: int, paddings: tuple[int, ...]) -> Batch:
    rng, B, Hq, Hkv, D = np.random.default_rng(T), len(paddings), 2, 1, 64
    together = {
        "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
        "q_norm": 1 + normal(rng, D, scale=0.1),
        "k_norm": 1 + normal(rng, D, scale=0.1),
        "keys": mx.zeros((B, Hkv, T, D), dtype),
        "values": mx.zeros((B, Hkv, T, D), dtype),
        "offset": 0,
        "rope_theta": 1e7,
        "rope_dim": 16,
        "rope_sections": (4, 2, 2),
        "positions": mx.maximum(mx.arange(T) - mx.array(paddings)[:, None], 0),
    }
    return Batch("attention_prepare", f"t{T}", paddings, together)


def attention(dtype: mx.Dtype, T: int, length: int, paddings: tuple[int, ...], bits: int | None = None) -> Batch:
    """T new tokens behind a cache, padded on its left."""
    rng, B, Hq, Hkv, D = np.random.default_rng(length), len(paddings), 4, 1, 64
    together = {
        "q": normal(rng, B, Hq, T, D, dtype=dtype),
        "projection": normal(rng, B, T, (2 * Hq + 2 * Hkv) * D, dtype=dtype),
        **cached(rng, (B, Hkv, length, D), dtype, bits),
        "length": length,
        "scale": D**-0.5,
        "start": mx.array(paddings),
    }
    return Batch("attention", f"t{T}l{length}" + ("-kv8" if bits else ""), paddings, together)
