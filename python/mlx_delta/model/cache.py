"""What a model remembers of the tokens it has seen: per gated-delta layer its two states, per attention layer its keys
and values.

Arrays are never changed under a holder: an op updates a state in place only when the cache alone holds it. So ``copy``
is free, and a copy is a snapshot that later tokens do not touch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from mlx_delta.config import TextConfig
from mlx_delta.ops.kv_rows import kv_row_bytes
from mlx_delta.ops.matrix import use_huge_pages

_ROWS = 256  # the KV cache grows by this many rows, so that most tokens append in place
_LARGE = 4 << 20  # bytes from which an array fills huge pages


def in_huge_pages(a: mx.array) -> mx.array:
    """``a``, where the system has huge pages evaluated if it is large and moved to them.

    Every token reads the cache whole: from pages of 4 KB that is half as fast.
    """
    if sys.platform == "linux" and a.nbytes >= _LARGE:
        mx.eval(a)
        use_huge_pages(a)
    return a


def _grown(rows: int, used: int) -> int:
    """How many rows to have room for, where ``rows`` are needed and ``used`` are copied: at least half as much again.

    Growing is a copy of everything, so it must become rare with length.
    """
    return -(-max(rows, used + used // 2) // _ROWS) * _ROWS


@dataclass
class DeltaState:
    """conv [B, 3, C] and delta float32 [B, Hv, Dv, Dk] of a gated-delta layer; None before the first token.

    drafting: whether the tokens to come may be taken back. pending [B, n, ..]: what the layer's mixer read of such
    tokens, of which the first ``kept`` count: the states have yet to go through these, in the mixer's next call. None:
    they have gone through all tokens.
    """

    conv: mx.array | None = None
    delta: mx.array | None = None
    drafting: bool = False
    pending: mx.array | None = None
    kept: int = 0

    def counted(self) -> mx.array | None:
        """Those of the pending that count."""
        return None if self.pending is None else self.pending[:, : self.kept]

    def arrays(self) -> list[mx.array]:
        return [a for a in (self.conv, self.delta, self.pending) if a is not None]

    def held(self) -> tuple[Any, ...]:
        return self.conv, self.delta, self.drafting, self.pending, self.kept

    def restore(self, held: tuple[Any, ...]) -> None:
        self.conv, self.delta, self.drafting, self.pending, self.kept = held


@dataclass
class KeyValues:
    """keys, values [B, Hkv, S, D] of an attention layer, S >= the tokens seen; None before the first token.

    bits: 8 for rows of that many bits, uint8 [B, Hkv, S, kv_row_bytes(D)]; None: of the activations' dtype.
    """

    keys: mx.array | None = None
    values: mx.array | None = None
    bits: int | None = None

    def reserve(self, shape: tuple[int, int, int, int], used: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """keys and values with room for [B, Hkv, S, D] = ``shape`` of activations of ``dtype``, their first ``used``
        rows kept."""
        batch, heads, rows, dim = shape
        if self.bits is not None:
            dim, dtype = kv_row_bytes(dim), mx.uint8
        if self.keys is not None and self.values is not None and self.keys.shape[2] >= rows:
            return self.keys, self.values
        grown = (batch, heads, _grown(rows, used) - used, dim)
        empty = mx.zeros(grown, dtype)
        if self.keys is None or self.values is None:
            return empty, mx.zeros(grown, dtype)
        keys = mx.concatenate([self.keys[:, :, :used], empty], axis=2)
        values = mx.concatenate([self.values[:, :, :used], empty], axis=2)
        return in_huge_pages(keys), in_huge_pages(values)

    @classmethod
    def joined(cls, parts: Sequence[KeyValues], rows: int) -> KeyValues:
        """Those of parts one after the other, copied, with room for so many rows."""
        used = sum(part.keys.shape[2] for part in parts if part.keys is not None)
        room = _grown(rows, used) - used

        def join(arrays: list[mx.array]) -> mx.array:
            batch, heads, _, dim = arrays[0].shape
            return in_huge_pages(
                mx.concatenate([*arrays, mx.zeros((batch, heads, room, dim), arrays[0].dtype)], axis=2)
            )

        return cls(
            join([part.keys for part in parts if part.keys is not None]),
            join([part.values for part in parts if part.values is not None]),
            parts[0].bits,
        )

    def stretch(self, start: int, end: int) -> KeyValues:
        """A copy of the rows [start, end), lazily."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = (mx.contiguous(each[:, :, start:end]) for each in (self.keys, self.values))
        return KeyValues(keys, values, self.bits)

    def arrays(self) -> list[mx.array]:
        return [a for a in (self.keys, self.values) if a is not None]

    def held(self) -> tuple[Any, ...]:
        return self.keys, self.values

    def restore(self, held: tuple[Any, ...]) -> None:
        self.keys, self.values = held


LayerState = DeltaState | KeyValues
Held = tuple[int, mx.array | None, int, list[tuple[Any, ...]]]


def empty_state(kind: str, kv_bits: int | None = None) -> LayerState:
    """That of a layer of one of the config's ``layer_types``."""
    return DeltaState() if kind == "linear_attention" else KeyValues(bits=kv_bits)


def kv_bytes(config: TextConfig, dtype: mx.Dtype, kv_bits: int | None = None) -> int:
    """Of one token's keys and values in one attention layer; dtype: of the activations."""
    row = config.head_dim * dtype.size if kv_bits is None else kv_row_bytes(config.head_dim)
    return 2 * config.num_key_value_heads * row


@dataclass
class Cache:
    """The state of B sequences after ``offset`` tokens each; ``forward`` advances it.

    start: int32 [B], where each left-padded sequence begins, or None: all at 0. rope_delta: the position of the next
    token less its index, below 0 where pictures take fewer positions than tokens.
    """

    layers: list[LayerState]
    offset: int = 0
    start: mx.array | None = field(default=None)
    rope_delta: int = 0

    @classmethod
    def empty(cls, config: TextConfig, kv_bits: int | None = None) -> Cache:
        """kv_bits: of keys and values; None: those of the activations."""
        return cls([empty_state(kind, kv_bits) for kind in config.layer_types])

    @staticmethod
    def bytes_of(config: TextConfig, dtype: mx.Dtype, tokens: int, kv_bits: int | None = None) -> int:
        """The most that a sequence of so many tokens takes, room to grow included."""
        states = 4 * config.linear_num_value_heads * config.linear_value_head_dim * config.linear_key_head_dim
        states += 3 * config.conv_dim * dtype.size
        rows = kv_bytes(config, dtype, kv_bits) * _grown(tokens, tokens)
        delta = sum(kind == "linear_attention" for kind in config.layer_types)
        return delta * states + (len(config.layer_types) - delta) * rows

    def copy(self) -> Cache:
        """A snapshot; costs nothing until one of the two goes on."""
        return Cache([replace(layer) for layer in self.layers], self.offset, self.start, self.rope_delta)

    def held(self) -> Held:
        """What ``restore`` brings back. While it is there, no state is updated in place."""
        return self.offset, self.start, self.rope_delta, [layer.held() for layer in self.layers]

    def restore(self, held: Held) -> None:
        """As it was when ``held`` was asked for."""
        self.offset, self.start, self.rope_delta, layers = held
        for layer, of in zip(self.layers, layers, strict=True):
            layer.restore(of)

    def begin_drafts(self) -> None:
        """Of the tokens that the next pass adds, the last ones may be taken back, by ``end_drafts``."""
        for layer in self.layers:
            if isinstance(layer, DeltaState):
                layer.drafting = True

    def end_drafts(self, kept: int, of: int) -> None:
        """Keep the first ``kept`` of the ``of`` tokens that came. Keys and values of the others are written over."""
        self.offset -= of - kept
        for layer in self.layers:
            if isinstance(layer, DeltaState):
                layer.drafting, layer.kept = False, kept

    def pending(self) -> list[mx.array]:
        """What layers have kept of tokens that may be taken back."""
        states = (layer for layer in self.layers if isinstance(layer, DeltaState))
        return [state.pending for state in states if state.pending is not None]

    def arrays(self) -> list[mx.array]:
        starts = [] if self.start is None else [self.start]
        return [a for layer in self.layers for a in layer.arrays()] + starts

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())
