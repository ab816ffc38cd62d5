"""Prompts, computed piece by piece beside sequences that decode, from what is kept of others and kept for others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import mlx.core as mx

from mlx_delta.engine.blocks import Restored
from mlx_delta.engine.cuts import ALIGNED, Cuts, Turns
from mlx_delta.engine.pace import Pace
from mlx_delta.engine.prefill import CHUNK
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.sequence import Passed, TokenSequence
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span


class Prompts:
    """The prompts of an engine's sequences. Where one is cut is up to its ids (``cuts``) and to ``pace``."""

    def __init__(self, network: Network, prefix: PrefixCache, turns: Turns) -> None:
        self.pace = Pace()
        self._network = network
        self._prefix = prefix
        self._turns = turns

    def compute(self, sequence: TokenSequence, *, beside: bool) -> None:
        """Go on with it; after its end, its first token is chosen.

        beside: others decode, and must not wait for long: some halves of layers of a piece at a time.
        """
        if not sequence.begun:
            cuts = Cuts(sequence.ids, self._turns)
            cache = sequence.cache if sequence.own_cache else self._prefix.resume(sequence.keys, cuts)
            sequence.begin(cuts, cache)
            if sequence.speculation is not None and not sequence.own_cache:
                hidden = self._prefix.hidden(sequence.keys, cuts, cache.offset)
                if hidden is not None:
                    sequence.speculation.see(hidden, cache.offset)
        if sequence.passing is None:
            if not beside:
                with Restored([sequence]):
                    passed = deque(self._pass(sequence, CHUNK), maxlen=1).pop()
                self._end_of_piece(sequence, passed)
                return
            most = self.pace.tokens(sequence.cache.offset, ALIGNED, CHUNK)
            sequence.passing = self._pass(sequence, self._network.agreed(most), halves=True)
        tokens = sum(span.count for span in sequence.spans)
        begin = before = time.perf_counter()
        for passed in sequence.passing:
            mx.eval([each for each in passed if each is not None])
            now, prefix = time.perf_counter(), sequence.cache.offset - tokens
            self.pace.took(sequence.parts, prefix, tokens, now - before)
            sequence.passed, sequence.parts = passed, sequence.parts + 1
            if sequence.parts == 2 * len(self._network.layers):
                break
            expected = self.pace.expected(sequence.parts, prefix, tokens)
            if beside and self._network.agreed(now - begin + expected > self.pace.seconds):
                return
            before = now
        self._end_of_piece(sequence, sequence.passed)

    def _pass(self, sequence: TokenSequence, most: int, *, halves: bool = False) -> Iterator[Passed]:
        """About ``most`` tokens of a prompt, through all layers: what each (half) gives, by rows and by tiles."""
        start, total = sequence.cache.offset, len(sequence.ids)
        border = total if sequence.own_cache else sequence.cuts.border(start)
        ids: dict[bool, list[int]] = {False: [], True: []}  # by rows, by tiles
        spans = []
        for piece in sequence.cuts.pieces(start, border, most):
            of, count = ids[piece.tiles], piece.end - piece.start
            spans.append(Span(sequence.cache, len(of), count, piece.tiles, sequence.pictures))
            of += sequence.ids[piece.start : piece.end]
        sequence.spans, sequence.border = spans, border
        rows, tiles = (mx.array(of) if of else None for of in ids.values())
        return self._network.layer_by_layer(rows, tiles, spans, halves)

    def _end_of_piece(self, sequence: TokenSequence, passed: Passed) -> None:
        """What the last layer gave of a piece is there."""
        sequence.passing, sequence.parts = None, 0
        end, total = sequence.cache.offset, len(sequence.ids)
        rows, tiles = passed
        self._show(sequence, rows, tiles)
        last = (
            tiles[:, -1:] if sequence.spans[-1].tiles and tiles is not None else rows[-1:] if rows is not None else None
        )
        assert last is not None
        if end == total:
            sequence.sample(self._network.logits(last)[:, 0])
            mx.async_eval(*sequence.arrays())
            return
        mx.eval(last, sequence.cache.arrays())
        if end < sequence.border:  # a short prompt has nothing to tell
            sequence.progress(end - sequence.known, total - sequence.known)
        else:
            self.keep(sequence)

    def keep(self, sequence: TokenSequence) -> None:
        """For others to go on from where it is."""
        if not sequence.own_cache and sequence.error is None and (covered := sequence.covered):
            recent = None if sequence.speculation is None else sequence.speculation.recent(sequence.cache.offset)
            self._prefix.keep(covered, sequence.cache, recent)

    def _show(self, sequence: TokenSequence, rows: mx.array | None, tiles: mx.array | None) -> None:
        """What drafts for the sequence sees what the last layer gave of a piece."""
        speculation, at = sequence.speculation, sequence.cache.offset - sum(span.count for span in sequence.spans)
        if speculation is None:
            return
        for span in sequence.spans:
            part, whole = slice(span.first, span.first + span.count), tiles if span.tiles else rows
            assert whole is not None
            at += span.count
            speculation.see(whole[:, part] if span.tiles else whole[part].reshape(1, span.count, -1), at)
        mx.async_eval(*speculation.arrays())
