"""How a Qwen3.5 model is divided among ranks.

    gated-delta layers  key heads, each with the value heads that read it; where there are more ranks than key heads,
                        value heads, and their key head on each of those ranks
    attention layers    the same of key/value heads and the query heads that read them
    feed-forward        columns of ``down`` with the rows of gate and up that make them, by groups of the quantization
    experts             the same columns of every expert, and columns of the shared one; what chooses is whole
    embedding, lm_head  rows of the vocabulary
    MTP head            as a layer; its ``fc``, hidden x 2 hidden, is whole

An expert is not given to one rank: of the few that a token takes, one rank would often have most, and the others wait
for it. Its columns keep all ranks equally busy, wherever a token goes.

Heads are dealt out as evenly as they can be: a rank may have one more than another, or none. Columns and rows then go
to the rank that holds the fewest bytes, so that all hold about the same. Norms are small, and whole everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mlx_delta.arch.base import Part, Share
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.model.mtp import MTP
from mlx_delta.model.network import EMBEDDING, HEAD, LAYERS

_ROWS = 32  # of the vocabulary at a time
_VOCABULARY = (f"{EMBEDDING}.weight", f"{HEAD}.weight")
_SHARED = ".mlp.shared_expert."


def shares(config: ModelConfig, ranks: int, sizes: Mapping[str, int]) -> tuple[Share, ...]:
    """One for each rank. sizes: bytes of every weight, with its scales and biases, by canonical name."""
    text = config.text
    delta = _heads(text.linear_num_key_heads, text.linear_num_value_heads, ranks)
    attention = _heads(text.num_key_value_heads, text.num_attention_heads, ranks)
    mixers = [_Parts(text, d, a, (0, 0), (0, 0), (0, 0)) for d, a in zip(delta, attention, strict=True)]
    held = [0.0] * ranks
    columns, shared_columns, rows = 0, 0, 0
    for name, nbytes in sizes.items():
        if _SHARED in name:
            shared_columns += nbytes
        elif ".mlp." in name:
            columns += nbytes
        elif name in _VOCABULARY:
            rows += nbytes
        elif all(parts := [mixer(name) for mixer in mixers]):
            counts = [sum(map(_count, part.ranges)) for part in parts if part is not None]
            length = max(stop for part in parts if part is not None for _, stop in part.ranges)
            held = [each + nbytes * count / length for each, count in zip(held, counts, strict=True)]
    group = _group(config)
    inner = _dealt(held, text.intermediate_size // group, columns, group)
    shared_size = 0 if text.experts is None else text.experts.shared_size
    shared = _dealt(held, shared_size // group, shared_columns, group)
    vocabulary = _vocabulary(held, text, rows)
    return tuple(
        Share(
            replace(
                text,
                linear_num_key_heads=_count(delta[r].read),
                linear_num_value_heads=_count(delta[r].readers),
                num_key_value_heads=_count(attention[r].read),
                num_attention_heads=_count(attention[r].readers),
                intermediate_size=_count(inner[r]),
                experts=None if text.experts is None else replace(text.experts, shared_size=_count(shared[r])),
            ),
            _count(vocabulary[r]),
            _Parts(text, delta[r], attention[r], inner[r], shared[r], vocabulary[r]),
        )
        for r in range(ranks)
    )


def stages(config: ModelConfig, ranks: int, sizes: Mapping[str, int]) -> tuple[Share, ...]:
    """Whole layers, one after another, for each rank: as many bytes for each as borders of layers allow. Rows of the
    vocabulary even that out. The MTP head's layer follows the model's; its ``fc`` is whole everywhere. sizes: as for
    ``shares``."""
    text = config.text
    layers = [0.0] * (text.num_layers + 1)
    rows = 0
    for name, nbytes in sizes.items():
        number = _layer(text, name)
        if number is not None:
            layers[number] += nbytes
        elif name in _VOCABULARY:
            rows += nbytes
    ends, total = [0.0, *accumulate(layers)], sum(layers)
    of = [min(ranks - 1, int((a + b) / 2 * ranks / total)) for a, b in pairwise(ends)]  # where a layer's middle falls
    found = [(of.index(r), of.index(r) + of.count(r)) if r in of else (0, 0) for r in range(ranks)]
    held = [sum(layers[first:end]) for first, end in found]
    vocabulary = _vocabulary(held, text, rows)
    return tuple(
        Share(
            replace(text, layer_types=text.layer_types[first:end]),
            _count(part),
            _Stage(text, (first, end), part),
            (first, end),
        )
        for (first, end), part in zip(found, vocabulary, strict=True)
    )


@dataclass(frozen=True)
class _Stage:
    text: TextConfig
    layers: Range
    vocabulary: Range

    def __call__(self, name: str) -> Part | None:
        if name in _VOCABULARY:
            return Part(-2, (self.vocabulary,))
        number = _layer(self.text, name)
        return None if number is None or number in range(*self.layers) else Part(0, ((0, 0),))


def _layer(text: TextConfig, name: str) -> int | None:
    """The number of the layer that a tensor is of."""
    if name.startswith(f"{MTP}.layers."):
        return text.num_layers
    return int(name.removeprefix(f"{LAYERS}.").partition(".")[0]) if name.startswith(f"{LAYERS}.") else None


Range = tuple[int, int]


@dataclass(frozen=True)
class _Heads:
    """read: key heads, or key/value heads. readers: the value heads, or query heads, that read them."""

    read: Range
    readers: Range


@dataclass(frozen=True)
class _Parts:
    text: TextConfig
    delta: _Heads
    attention: _Heads
    inner: Range
    shared: Range
    vocabulary: Range

    def __call__(self, name: str) -> Part | None:
        if name in _VOCABULARY:
            return Part(-2, (self.vocabulary,))
        layers = next((each for each in (f"{LAYERS}.", f"{MTP}.layers.") if name.startswith(each)), None)
        if layers is None:
            return None
        module = name.removeprefix(layers).partition(".")[2].removesuffix(".weight")  # "self_attn.q_proj"
        kind, _, matrix = module.partition(".")
        if kind == "mlp":
            return self._feed_forward(matrix)
        return self._delta(matrix) if kind == "linear_attn" else self._attention(matrix)

    def _feed_forward(self, matrix: str) -> Part | None:
        if not matrix.endswith("_proj"):  # a router, or the gate of the shared expert
            return None
        columns = self.shared if matrix.startswith("shared_expert.") else self.inner
        return Part(-1 if matrix.endswith("down_proj") else -2, (columns,))

    def _delta(self, matrix: str) -> Part | None:
        text, keys, values = self.text, self.delta.read, self.delta.readers
        width = text.linear_num_key_heads * text.linear_key_head_dim
        q, v = _times(keys, text.linear_key_head_dim), _times(values, text.linear_value_head_dim)
        if matrix in ("in_proj_qkv", "conv1d"):
            return Part(0, (q, _after(q, width), _after(v, 2 * width)))
        if matrix == "out_proj":
            return Part(-1, (v,))
        if matrix == "in_proj_z":
            return Part(0, (v,))
        return Part(0, (values,)) if matrix in ("in_proj_a", "in_proj_b", "A_log", "dt_bias") else None

    def _attention(self, matrix: str) -> Part | None:
        dim = self.text.head_dim
        if matrix == "q_proj":  # with the head's gate
            return Part(0, (_times(self.attention.readers, 2 * dim),))
        if matrix in ("k_proj", "v_proj"):
            return Part(0, (_times(self.attention.read, dim),))
        return Part(-1, (_times(self.attention.readers, dim),)) if matrix == "o_proj" else None


def _heads(read: int, readers: int, ranks: int) -> list[_Heads]:
    """Those of each rank; of ``readers`` heads each ``readers / read`` read the same one."""
    each = readers // read
    if ranks <= read:
        return [_Heads(part, _times(part, each)) for part in _even(read, ranks)]
    result = []
    for head, (first, last) in enumerate(_even(ranks, read)):
        for part in _even(each, last - first):
            kept = (head, head + 1) if _count(part) else (head, head)
            result.append(_Heads(kept, _after(part, head * each)))
    return result


def _even(count: int, parts: int) -> list[Range]:
    """[0, count) in parts that differ by one at most."""
    return list(pairwise(count * part // parts for part in range(parts + 1)))


def _dealt(held: list[float], count: int, nbytes: int, unit: int, *, least: int = 0) -> list[Range]:
    """``count`` units, each to the rank that holds the fewest bytes then: the range of each rank, in values. least:
    units that every rank gets."""
    counts = [0] * len(held)
    for i in range(count):
        rank = i % len(held) if i < least * len(held) else min(range(len(held)), key=held.__getitem__)
        held[rank] += nbytes / count
        counts[rank] += 1
    return [(start * unit, stop * unit) for start, stop in pairwise(accumulate(counts, initial=0))]


def _vocabulary(held: list[float], text: TextConfig, nbytes: int) -> list[Range]:
    """The rows of each rank."""
    found = _dealt(held, -(-text.vocab_size // _ROWS), nbytes, _ROWS, least=1)
    return [*found[:-1], (found[-1][0], text.vocab_size)]


def _group(config: ModelConfig) -> int:
    """Columns that stay together: the largest group that any of the matrices might have."""
    return max((width.group_size for width in config.quantization.values()), default=32)


def _count(part: Range) -> int:
    return part[1] - part[0]


def _times(part: Range, by: int) -> Range:
    return part[0] * by, part[1] * by


def _after(part: Range, offset: int) -> Range:
    return part[0] + offset, part[1] + offset
