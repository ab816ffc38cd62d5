"""A rank's share of a network, which with the others' gives what the whole one would, but for the order of sums.

stream    x + all_sum(product of a rank's heads or columns); rank 0 adds x, so that it is added once
embedding all_sum(a rank's rows, zeros for tokens of other ranks)
logits    all_gather(product of a rank's rows)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.arch.base import Architecture, Share
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.model.cache import Cache, KeyValues, LayerState
from mlx_delta.model.experts import Experts, gated
from mlx_delta.model.layers import (
    AttentionLayer,
    DeltaLayer,
    FeedForward,
    Layer,
    Mlp,
    Rows,
    Stage,
    Window,
    hybrid_layer,
)
from mlx_delta.model.mtp import MTP, MtpHead
from mlx_delta.model.network import Network, arrays_of
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix
from mlx_delta.ops.experts import expert_rows


@dataclass(frozen=True)
class Summed:
    """The ``Join`` of matrices whose columns lie on several ranks."""

    ranks: Ranks

    def __call__(self, read: mx.array, matrix: Matrix, x: mx.array) -> mx.array:
        return self.ranks.sum(ops.qmm(read, (matrix,), residual=x if self.ranks.rank == 0 else None))

    def nothing(self, x: mx.array) -> mx.array:
        """Where this rank has no column."""
        return self.ranks.sum(x if self.ranks.rank == 0 else mx.zeros_like(x))


@dataclass(frozen=True)
class SharedExperts:
    """Columns of every expert, and of the shared one: all ranks choose the same."""

    experts: Experts
    join: Summed
    none_of: str = ""  # what this rank has no column of: "experts" or "shared"; then the other stands in, and counts 0

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        chosen, weights = self.experts.route(x, eps)
        if self.none_of == "experts":
            chosen = mx.zeros_like(chosen[..., :1])
            weights = mx.concatenate([mx.zeros_like(weights[..., :1]), weights[..., -1:]], axis=-1)
        elif self.none_of == "shared":
            weights = mx.concatenate([weights[..., :-1], mx.zeros_like(weights[..., -1:])], axis=-1)
        if self.join.ranks.rank == 0:
            return self.join.ranks.sum(self._added(x, chosen, weights, eps))
        whole = x.astype(mx.float32)  # in which x can be taken off again, and nothing of what was added is lost
        return self.join.ranks.sum((self._added(whole, chosen, weights, eps) - whole).astype(x.dtype))

    def _added(self, x: mx.array, chosen: mx.array, weights: mx.array, eps: float) -> mx.array:
        of = self.experts
        return ops.experts(x, chosen, weights, of.experts, of.shared, of.norm, eps=eps)

    def stages(self, eps: float) -> list[Stage]:
        return self.experts.stages(eps)


@dataclass(frozen=True)
class NoColumns:
    """The feed-forward of a rank that has none of its columns."""

    join: Summed

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        return self.join.nothing(x)

    def stages(self, eps: float) -> list[Stage]:
        return []


@dataclass(frozen=True)
class NoHeads:
    """The layer of a rank that has none of its mixer's heads."""

    config: TextConfig
    feed_forward: FeedForward
    join: Summed

    def __call__(self, x: mx.array, state: LayerState, window: Window) -> mx.array:
        return self.finish(self.mix_projected(x, state, window), x)

    def project(self, x: mx.array) -> mx.array:
        return x

    def mix_projected(self, projection: mx.array, state: LayerState, window: Window) -> mx.array:
        if isinstance(state, KeyValues):  # of no head, for those who keep them
            state.keys = state.values = mx.zeros((len(projection), 0, window.offset + projection.shape[1], 1))
        return projection

    def mix_rows(self, projection: mx.array, states: Sequence[LayerState], rows: Rows) -> mx.array:
        for state, offset, count in zip(states, rows.offsets, rows.counts, strict=True):
            self.mix_projected(mx.zeros((1, count)), state, Window(offset))
        return projection

    def finish(self, mixed: mx.array, x: mx.array) -> mx.array:
        return self.feed_forward(self.join.nothing(x), self.config.rms_norm_eps)

    def stages(self) -> list[Stage]:
        return self.feed_forward.stages(self.config.rms_norm_eps)


@dataclass(frozen=True)
class StageEnd:
    """The feed-forward of a rank's last layer: from here on all ranks have what that layer gives, the same bits."""

    feed_forward: FeedForward
    ranks: Ranks

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        return self.ranks.sum(self.feed_forward(x, eps))

    def stages(self, eps: float) -> list[Stage]:
        return self.feed_forward.stages(eps)


@dataclass(frozen=True)
class Elsewhere(NoHeads):
    """A layer of another rank. ends: whether that rank's last, or the model's."""

    ends: bool = False

    def finish(self, mixed: mx.array, x: mx.array) -> mx.array:
        return self.join.ranks.sum(mx.zeros_like(x)) if self.ends else x


@dataclass(frozen=True)
class SharedNetwork(Network):
    """heads: the share with the most of them. rows: how many of the vocabulary each rank has, one after another.
    weight_bytes: what each holds."""

    ranks: Ranks | None = None
    heads: TextConfig | None = None
    rows: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    ranked: ClassVar[bool] = True

    @property
    def cached(self) -> TextConfig:
        return self.heads or self.config

    def agreed(self, wanted: int) -> int:
        assert self.ranks is not None
        return self.ranks.numbers(int(wanted))[0]

    def least(self, number: int) -> int:
        assert self.ranks is not None
        return min(self.ranks.numbers(number))

    def embed(self, tokens: mx.array) -> mx.array:
        assert self.ranks is not None
        first, count = sum(self.rows[: self.ranks.rank]), self.rows[self.ranks.rank]
        here = (tokens >= first) & (tokens < first + count)
        found = ops.embedding(mx.where(here, tokens - first, 0), self.embed_tokens, self.dtype)
        wrong = (tokens < 0) | (tokens >= self.config.vocab_size)  # NaN, as the whole table has it
        lost = mx.where(wrong, mx.array(mx.nan, self.dtype), mx.array(0, self.dtype))
        return self.ranks.sum(mx.where(here[..., None], found, lost[..., None]))

    def head(self, x: mx.array, norm: mx.array) -> mx.array:
        assert self.ranks is not None
        return self.ranks.columns(super().head(x, norm), self.rows)

    @property
    def shortlist(self) -> None:
        """Drafts are chosen from all tokens: a rank reads its rows of lm_head alone."""


def shared_network(
    architecture: Architecture,
    config: ModelConfig,
    shares: Sequence[Share],
    weights: Mapping[str, mx.array],
    dtype: mx.Dtype,
    ranks: Ranks,
) -> SharedNetwork:
    """This rank's, from its parts of the canonical tensors."""
    share, join = shares[ranks.rank], Summed(ranks)
    local = config if share.layers is not None else replace(config, text=share.text)
    last = {config.text.num_layers - 1, config.text.num_layers}  # of the model, and of its MTP head
    last |= {each.layers[1] - 1 for each in shares if each.layers is not None}

    def feed_forward(w: Weights) -> FeedForward:
        experts = share.text.experts
        if experts is not None and share.text.intermediate_size + experts.shared_size:
            return _shared_experts(w, share.text.intermediate_size, experts.shared_size, join)
        if not share.text.intermediate_size:
            return NoColumns(join)
        made = architecture.feed_forward(w)
        assert isinstance(made, Mlp)
        return replace(made, join=join)

    def whole(number: int, mine: tuple[int, int], make: Callable[[Callable[[Weights], FeedForward]], Layer]) -> Layer:
        if number not in range(*mine):
            return Elsewhere(config.text, NoColumns(join), join, number in last)  # type: ignore[return-value]
        own = architecture.feed_forward
        return make(lambda w: StageEnd(own(w), ranks) if number in last else own(w))

    def attention(w: Weights) -> AttentionLayer:
        if share.text.num_attention_heads:
            return replace(AttentionLayer.from_weights(w, feed_forward(w)), join=join)
        return NoHeads(share.text, feed_forward(w), join)  # type: ignore[return-value]  # all that Network asks of one

    def layer(layers: Weights, index: int) -> Layer:
        if share.layers is not None:
            return whole(index, share.layers, lambda follows: hybrid_layer(layers, index, follows))
        w = layers.under(str(index))
        if share.text.layer_types[index] == "full_attention":
            return attention(w)
        if share.text.linear_num_value_heads:
            return replace(DeltaLayer.from_weights(w, feed_forward(w)), join=join)
        return NoHeads(share.text, feed_forward(w), join)  # type: ignore[return-value]

    part = Network.from_weights(local, weights, dtype, layer)
    mine: dict[str, Any] = {each.name: getattr(part, each.name) for each in fields(part)}
    if f"{MTP}.fc.weight" in weights:
        w = Weights(local, weights).under(MTP)
        of_head, number = w.under("layers.0"), config.text.num_layers
        mine["mtp"] = MtpHead.of(
            w,
            attention(of_head)
            if share.layers is None
            else whole(number, share.layers, lambda make: AttentionLayer.from_weights(of_head, make(of_head))),  # type: ignore[arg-type]
        )
        mx.eval(*arrays_of(mine["mtp"]))  # as Network does the rest
    return SharedNetwork(
        **{**mine, "config": config.text},
        ranks=ranks,
        heads=max((each.text for each in shares), key=lambda text: Cache.bytes_of(text, dtype, 1 << 16)),
        rows=tuple(each.vocabulary for each in shares),
        weight_bytes=tuple(ranks.numbers(sum(array.nbytes for array in weights.values()))),
    )


def _shared_experts(w: Weights, columns: int, shared_columns: int, join: Summed) -> SharedExperts:
    """w: a layer's. columns: of the experts, shared_columns: of the shared one; not both 0."""
    mlp = w.under("mlp")
    shared = gated(mlp.under("shared_expert")) if shared_columns else None
    experts = gated(mlp.under("switch_mlp")) if columns else None
    if experts is None:
        assert shared is not None
        return SharedExperts(Experts.of(w, shared, shared), join, "experts")
    if shared is None:
        assert w.config.text.experts is not None
        gate, up, down = expert_rows(experts, 0, w.config.text.experts.count)
        return SharedExperts(Experts.of(w, experts, (gate, up, down)), join, "shared")
    return SharedExperts(Experts.of(w, experts, shared), join)
