"""The whole text model, from canonical weights to logits.

Weights come by their canonical (MLX) names; matrices stay as they are stored, quantized or plain, the embedding and
lm_head too; small parameters become float32. ``dtype`` is that of the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.model.cache import Cache, KeyValues
from mlx_delta.model.layers import FeedForward, Layer, Window, matrices, normed
from mlx_delta.model.mtp import MTP, MtpHead
from mlx_delta.model.pictures import PicturePart
from mlx_delta.model.rows import Pass, Span, Tokens
from mlx_delta.model.shortlist import Shortlist, shortlist
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix

# Canonical names of modules.
EMBEDDING, NORM, HEAD = "language_model.model.embed_tokens", "language_model.model.norm", "language_model.lm_head"
LAYERS = "language_model.model.layers"  # each by its number: "language_model.model.layers.0"


@dataclass(frozen=True)
class Network:
    """A text model. Stateless: all that changes is in the cache.

    mtp: the head that drafts tokens, where the checkpoint has one. No result of the model depends on it. kv_bits: of
    the keys and values in ``empty_cache``; None: those of the activations.
    """

    config: TextConfig
    dtype: mx.Dtype
    embed_tokens: Matrix
    layers: tuple[Layer, ...]
    norm: mx.array
    lm_head: Matrix
    mtp: MtpHead | None = None
    kv_bits: int | None = None
    ranked: ClassVar[bool] = False  # whether several processes compute it together

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: Mapping[str, mx.array],
        dtype: mx.Dtype,
        layer: Callable[[Weights, int], Layer],
        feed_forward: Callable[[Weights], FeedForward] | None = None,
    ) -> Network:
        """Build from canonical tensors, all of an architecture's shapes, quantized modules with their scales.

        layer: the one of that number, from the tensors of all layers. feed_forward: that of the MTP head's layer, from
        its tensors; None: no head is made of what ``weights`` have of one.
        """
        w = Weights(config, weights)
        embed_tokens = w.matrix(EMBEDDING)
        layers = w.under(LAYERS)
        network = cls(
            config=config.text,
            dtype=dtype,
            embed_tokens=embed_tokens,
            layers=tuple(layer(layers, i) for i in range(config.text.num_layers)),
            norm=w.parameter(f"{NORM}.weight"),
            lm_head=embed_tokens if config.text.tie_word_embeddings else w.matrix(HEAD),
            mtp=MtpHead.from_weights(w.under(MTP), feed_forward)
            if feed_forward is not None and f"{MTP}.fc.weight" in weights
            else None,
        )
        mx.eval(*arrays_of(network))  # a lazy array can be evaluated in the thread alone that made it
        return network

    @property
    def cached(self) -> TextConfig:
        """The dimensions of what caches hold."""
        return self.config

    def agreed(self, wanted: int) -> int:
        """A number that may differ from machine to machine, of the time or the memory, 0 <= wanted < 2**62: rank 0's,
        where several run the network."""
        return wanted

    def least(self, number: int) -> int:
        """The least of all ranks' numbers, 0 <= number < 2**62."""
        return number

    def hidden_states(
        self, tokens: mx.array, cache: Cache, mask: mx.array | None = None, pictures: PicturePart | None = None
    ) -> Iterator[mx.array]:
        """x [B, T, hidden] as it enters each layer and leaves the last; advances the cache.

        mask: bool [B, T] of left-padded prompts: false before each sequence begins. A prompt may come in chunks.
        pictures: of the whole prompt, of a batch of 1, of which these tokens are those from ``cache.offset`` on.
        """
        if mask is not None:
            padding = mx.sum(mx.logical_not(mask), axis=1).astype(mx.int32)
            cache.start = padding if cache.start is None else cache.start + padding
        positions = None
        if cache.start is not None:  # its own, so that a padded sequence rotates by the very angles it has alone
            positions = mx.maximum(mx.arange(cache.offset, cache.offset + tokens.shape[1]) - cache.start[:, None], 0)
        x = self.embed(tokens)
        if pictures is not None or cache.rope_delta:
            positions, shown = _shown(cache, tokens.shape[1], pictures)
            if shown is not None:
                x[0, shown[0]] = shown[1].astype(x.dtype)
        window = Window(cache.offset, mask, cache.start, positions)
        yield x
        for layer, state in zip(self.layers, cache.layers, strict=True):
            x = layer(x, state, window)
            yield x
        cache.offset += tokens.shape[1]

    def empty_cache(self) -> Cache:
        """Of a sequence that has not begun."""
        return Cache.empty(self.config, self.kv_bits)

    def embed(self, tokens: mx.array) -> mx.array:
        """tokens int [..] -> [.., hidden]."""
        return ops.embedding(tokens, self.embed_tokens, self.dtype)

    def logits(self, x: mx.array) -> mx.array:
        """x [.., hidden] -> [.., V]: the final norm and lm_head."""
        return self.head(x, self.norm)

    def head(self, x: mx.array, norm: mx.array) -> mx.array:
        """x [.., hidden] -> [.., V]: a norm and lm_head."""
        return ops.qmm(x, (self.lm_head,), norm=norm, eps=self.config.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: Cache,
        *,
        mask: mx.array | None = None,
        pictures: PicturePart | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """tokens int [B, T] -> logits [B, T, V]; with ``last_only`` [B, 1, V], of the last token alone."""
        x = mx.array(0)
        for x in self.hidden_states(tokens, cache, mask, pictures):  # noqa: B007 - the last one is what is wanted
            pass
        return self.logits(x[:, -1:] if last_only else x)

    def decode(self, tokens: mx.array, caches: Sequence[Cache]) -> mx.array:
        """The next token of B sequences, int [B], each with a cache of its own, of batch 1 -> logits [B, V].

        A row has the bits that ``self(tokens[b : b + 1, None], caches[b])`` has: neither the number of sequences nor
        which they are changes them. The caches are advanced.
        """
        rows, _ = self.advance(tokens, None, [Span(cache, i) for i, cache in enumerate(caches)])
        assert rows is not None
        return self.logits(rows)[:, 0]

    def step(self, token: mx.array, cache: Cache) -> mx.array:
        """The next token of one sequence, int [1] -> what the last layer gives of it, [1, 1, hidden]: ``advance`` of
        one row, and no other."""
        x = self.embed(token[None])
        positions = _shown(cache, 1, None)[0] if cache.rope_delta else None
        window = Window(cache.offset, positions=positions)
        for layer, state in zip(self.layers, cache.layers, strict=True):
            x = layer(x, state, window)
        cache.offset += 1
        return x

    def advance(
        self, rows: mx.array | None, tiles: mx.array | None, spans: Sequence[Span]
    ) -> tuple[mx.array | None, mx.array | None]:
        """One pass over the weights for tokens of several sequences: rows int [R], tiles int [N] -> what the last layer
        gives of each, [R, 1, hidden] and [1, N, hidden].

        spans: whose they are; their caches are advanced. A token by rows has the bits that it has alone, as the next of
        its sequence.
        """
        passed: Tokens = (None, None)
        for passed in self.layer_by_layer(rows, tiles, spans):  # noqa: B007 - the last one is what is wanted
            pass
        return passed

    def layer_by_layer(
        self, rows: mx.array | None, tiles: mx.array | None, spans: Sequence[Span], halves: bool = False
    ) -> Iterator[tuple[mx.array | None, mx.array | None]]:
        """``advance``, layer by layer: what each gives. Caches count the tokens from the beginning on.

        halves: what each layer's mixer gives too, before what the layer does.
        """
        x = None if rows is None else self.embed(rows[:, None])
        y = None if tiles is None else self.embed(tiles[None])
        windows = []
        for span in spans:
            start = span.cache.offset
            positions, shown = _shown(span.cache, span.count, span.pictures)
            windows.append(Window(start, positions=positions))
            span.cache.offset += span.count
            if shown is not None and span.tiles and y is not None:
                y[0, span.first + shown[0]] = shown[1].astype(y.dtype)
            elif shown is not None and x is not None:
                x[span.first + shown[0], 0] = shown[1].astype(x.dtype)
        tokens, through = (x, y), Pass(spans, windows)
        for layer, *states in zip(self.layers, *(span.cache.layers for span in spans), strict=True):
            if halves:
                parts = through.mixed(layer, tokens, states)
                yield parts
                tokens = through.finished(layer, parts, tokens)
            else:
                tokens = through.over(layer, tokens, states)
            yield tokens

    def hidden(self, x: mx.array) -> mx.array:
        """What the MTP head reads of x [.., hidden], as it leaves the last layer."""
        return normed(x, self.norm, self.config.rms_norm_eps).astype(x.dtype)

    def draft(
        self, tokens: mx.array, hidden: mx.array, state: KeyValues, offset: int, *, last: bool = False
    ) -> mx.array:
        """The MTP head over T slots: tokens [B, T], each the one after that whose ``hidden`` [B, T, hidden] it stands
        beside -> x [B, T, hidden], for ``draft_logits`` and ``mtp.hidden``. state: after ``offset`` slots; advanced.
        last: x of the last slot alone, for less."""
        assert self.mtp is not None
        return self.mtp(self.embed(tokens), hidden, state, offset, last=last)

    def draft_logits(self, x: mx.array) -> mx.array:
        """What ``draft`` gave [.., hidden] -> [.., V]."""
        assert self.mtp is not None
        return self.head(x, self.mtp.norm)

    def draft_token(self, x: mx.array, among: Shortlist | None = None) -> mx.array:
        """The likeliest token of what ``draft`` gave of one slot [1, 1, hidden], int32 [1]; ``among`` those of a list
        alone, of which None are all."""
        assert self.mtp is not None
        if among is None:
            return mx.argmax(self.draft_logits(x)[:, 0], axis=-1).astype(mx.int32)
        logits = ops.qmm(x, among.matrices, norm=self.mtp.norm, eps=self.config.rms_norm_eps)
        return among.tokens[mx.argmax(logits[:, 0], axis=-1)]

    @cached_property
    def shortlist(self) -> Shortlist | None:
        """What drafts of any text are chosen from; None: all tokens."""
        return shortlist(self.lm_head)

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        """Every weight matrix that decoding a token reads, by its canonical module name."""
        for index, layer in enumerate(self.layers):
            yield from ((f"{LAYERS}.{index}.{name}", matrix) for name, matrix in matrices(layer))
        yield EMBEDDING if self.lm_head is self.embed_tokens else HEAD, self.lm_head

    @property
    def nbytes(self) -> int:
        """Of all weights, each once."""
        parts = [getattr(self, each.name) for each in fields(self) if each.name != "lm_head"]
        if self.lm_head is not self.embed_tokens:
            parts.append(self.lm_head)
        return sum(array.nbytes for part in parts for array in arrays_of(part))

    @property
    def bytes_per_token(self) -> int:
        """Weight bytes that decoding one token reads: every matrix once, of experts those chosen, one row of the
        embedding.

        States and the KV cache come on top: they depend on the batch and the context.
        """
        row = self.embed_tokens.nbytes // self.embed_tokens.rows
        layers = sum(stage.bytes_per_token for layer in self.layers for stage in layer.stages())
        return row + layers + self.lm_head.nbytes

    @property
    def bytes_per_draft(self) -> int:
        """Weight bytes that a token drafted by the MTP head reads; 0: there is none."""
        if self.mtp is None:
            return 0
        among = (self.lm_head,) if self.shortlist is None else self.shortlist.matrices
        return self.mtp.bytes_per_draft + sum(matrix.nbytes for matrix in among)


def _shown(
    cache: Cache, count: int, pictures: PicturePart | None
) -> tuple[mx.array | None, tuple[mx.array, mx.array] | None]:
    """Of the next tokens: positions int32 [3, 1, count], None where they are those of text alone; and the pictures'
    rows among them."""
    end = cache.offset + count
    if pictures is not None:
        cache.rope_delta = int(pictures.positions[:, :end].max()) + 1 - end
        return mx.array(pictures.positions[:, None, cache.offset : end]), pictures.rows(cache.offset, end)
    if not cache.rope_delta:
        return None, None
    positions = np.arange(cache.offset, end, dtype=np.int32) + cache.rope_delta
    return mx.array(np.broadcast_to(positions, (3, 1, count))), None


def arrays_of(part: Any) -> Iterator[mx.array]:
    """Every array of a network, or of a part of one."""
    if isinstance(part, mx.array):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from arrays_of(each)
    elif isinstance(part, Matrix):
        yield from (a for a in (part.weight, part.scales, part.biases) if a is not None)
    elif is_dataclass(part) and not isinstance(part, type):
        for each in fields(part):
            yield from arrays_of(getattr(part, each.name))
