"""Prompts, computed piece by piece beside sequences that decode, from what is kept of others and kept for others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta.engine.blocks import ErrorsOf, Restored
from mlx_delta.engine.cuts import ALIGNED, CHUNK, Cuts, Turns
from mlx_delta.engine.pace import Pace
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.sequence import Passed, TokenSequence
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span


@dataclass
class _Piece:
    """What a pass computes of a prompt. border: what it is on the way to, where its sequence is kept for others."""

    sequence: TokenSequence
    spans: list[Span]
    border: int


@dataclass
class _Pass:
    """Pieces of several prompts on their way through the network. made: what its layers, or halves of them, give;
    last: what one gave last; parts: how many have; prefix: the longest before a piece."""

    pieces: list[_Piece]
    made: Iterator[Passed]
    tokens: int
    prefix: int
    last: Passed = (None, None)
    parts: int = 0


class Prompts:
    """The prompts of an engine's sequences. Where one is cut is up to its ids (``cuts``) and to ``pace``."""

    def __init__(self, network: Network, prefix: PrefixCache, turns: Turns) -> None:
        self.pace = Pace()
        self._network = network
        self._prefix = prefix
        self._turns = turns
        self._pass: _Pass | None = None  # the one under way

    def compute(self, waiting: Sequence[TokenSequence], *, beside: int) -> None:
        """Go on with the first, and with others that a pass has room for; after a prompt's end, its first token is
        chosen. What fails ends its own sequence.

        beside: so many decode, and must not wait for long: some halves of layers of a pass at a time.
        """
        under_way = self._pass
        if under_way is not None and all(piece.sequence.ended for piece in under_way.pieces):
            self._pass = under_way = None
        pieces = [] if under_way is None else under_way.pieces
        restored = False
        try:
            if under_way is None:
                under_way = self._begun(waiting, beside, pieces)
                if not pieces:
                    return
                if not beside:
                    restored = True
                    with Restored([piece.sequence for piece in pieces]):
                        for passed in under_way.made:
                            under_way.last = passed
                    self._end(under_way)
                    return
                self._pass = under_way
            if self._parts(under_way, beside):
                self._end(under_way)
        except BaseException as error:
            self._pass = None
            for piece in pieces:
                self._failed(piece.sequence, error, restored=restored, alone=len(pieces) == 1)
            if not isinstance(error, Exception):
                raise

    def _parts(self, under_way: _Pass, beside: int) -> bool:
        """Some halves of layers; whether the last has come."""
        begin = before = time.perf_counter()
        for passed in under_way.made:
            mx.eval([each for each in passed if each is not None])
            now = time.perf_counter()
            self.pace.took(under_way.parts, under_way.prefix, under_way.tokens, now - before)
            under_way.last, under_way.parts = passed, under_way.parts + 1
            if under_way.parts == 2 * len(self._network.layers):
                break
            expected = self.pace.expected(under_way.parts, under_way.prefix, under_way.tokens)
            if beside and self._network.agreed(now - begin + expected > self.pace.seconds(beside)):
                return False
            before = now
        return True

    def _begun(self, waiting: Sequence[TokenSequence], beside: int, pieces: list[_Piece]) -> _Pass:
        """A pass over ``pieces``, none yet: of the first prompt, and of those after it that have nothing to wait for,
        while there is room: matrices are read once for all, and many rows are multiplied faster than few."""
        ids: dict[bool, list[int]] = {False: [], True: []}  # by rows, by tiles
        prefix = tokens = 0
        for sequence in waiting:
            if pieces and tokens + ALIGNED > self._most(prefix, beside):
                break
            if pieces and not _joins(sequence, pieces):
                continue
            with ErrorsOf([sequence]):
                self._begin(sequence)
                longest = max(prefix, sequence.cache.offset)
                most = self._most(longest, beside)
                if pieces and tokens + ALIGNED > most:
                    break
                prefix = longest
                pieces.append(_piece(sequence, most - tokens, ids))
                tokens = sum(len(each) for each in ids.values())
                if sequence.own_cache or sequence.pictures is not None or sequence.by_itself:
                    break
        for piece in pieces:
            piece.sequence.computing = True
        rows, tiles = (mx.array(of) if of else None for of in ids.values())
        spans = [span for piece in pieces for span in piece.spans]
        return _Pass(pieces, self._network.layer_by_layer(rows, tiles, spans, bool(beside)), tokens, prefix)

    def _most(self, prefix: int, beside: int) -> int:
        """Tokens of a pass."""
        return self._network.agreed(self.pace.tokens(prefix, ALIGNED, CHUNK, beside)) if beside else CHUNK

    def _begin(self, sequence: TokenSequence) -> None:
        if sequence.begun:
            return
        cuts = Cuts(sequence.ids, self._turns)
        cache = sequence.cache if sequence.own_cache else self._prefix.resume(sequence.keys, cuts)
        sequence.begin(cuts, cache)
        if sequence.speculation is not None and not sequence.own_cache:
            hidden = self._prefix.hidden(sequence.keys, cuts, cache.offset)
            if hidden is not None:
                sequence.speculation.see(hidden, cache.offset)

    def _end(self, done: _Pass) -> None:
        """What the last layer gave of all pieces is there."""
        self._pass = None
        for piece in done.pieces:
            if not piece.sequence.ended:
                with ErrorsOf([piece.sequence]):
                    piece.sequence.computing = False
                    self._end_of_piece(piece, done.last)

    def _end_of_piece(self, piece: _Piece, passed: Passed) -> None:
        sequence, (rows, tiles) = piece.sequence, passed
        end, total = sequence.cache.offset, len(sequence.ids)
        self._show(piece, rows, tiles)
        span = piece.spans[-1]
        at = span.first + span.count - 1
        whole = tiles if span.tiles else rows
        assert whole is not None
        last = whole[:, at : at + 1] if span.tiles else whole[at : at + 1]
        if end == total:
            sequence.sample(self._network.logits(last)[:, 0])
            mx.async_eval(*sequence.arrays())
            return
        mx.eval(last, sequence.cache.arrays())
        if end < piece.border:  # a short prompt has nothing to tell
            sequence.progress(end - sequence.known, total - sequence.known)
        else:
            self.keep(sequence)

    def _failed(self, sequence: TokenSequence, error: BaseException, *, restored: bool, alone: bool) -> None:
        """A pass with a piece of it did. restored: its cache is as it was before; alone: no other's piece was in it, so
        that the error is its own: of several each finds out by itself."""
        if sequence.ended:
            return
        sequence.by_itself = sequence.by_itself or isinstance(error, Exception)
        if isinstance(error, Exception) and alone:
            sequence.error, sequence.ended = error, True
        elif restored:
            sequence.computing = False
        elif sequence.own_cache:
            sequence.error, sequence.ended = InterruptedError("prompt: interrupted within a piece"), True
        else:
            sequence.begin_again()

    def leave(self, sequence: TokenSequence) -> None:
        """It has ended: it is kept, and of a pass under way the others' pieces alone matter."""
        if sequence.computing and self._pass is not None:
            if all(piece.sequence.ended for piece in self._pass.pieces):
                self._pass = None
            return
        self.keep(sequence)

    def keep(self, sequence: TokenSequence) -> None:
        """For others to go on from where it is."""
        if not sequence.own_cache and sequence.error is None and (covered := sequence.covered):
            recent = None if sequence.speculation is None else sequence.speculation.recent(sequence.cache.offset)
            self._prefix.keep(covered, sequence.cache, recent)

    def _show(self, piece: _Piece, rows: mx.array | None, tiles: mx.array | None) -> None:
        """What drafts for the sequence sees what the last layer gave of a piece."""
        speculation = piece.sequence.speculation
        if speculation is None:
            return
        at = piece.sequence.cache.offset - sum(span.count for span in piece.spans)
        for span in piece.spans:
            part, whole = slice(span.first, span.first + span.count), tiles if span.tiles else rows
            assert whole is not None
            at += span.count
            speculation.see(whole[:, part] if span.tiles else whole[part].reshape(1, span.count, -1), at)
        mx.async_eval(*speculation.arrays())


def _piece(sequence: TokenSequence, most: int, ids: dict[bool, list[int]]) -> _Piece:
    """About ``most`` tokens of a prompt, at the end of the ``ids`` of a pass, by rows and by tiles."""
    start, total, spans = sequence.cache.offset, len(sequence.ids), list[Span]()
    border = total if sequence.own_cache else sequence.cuts.border(start)
    for cut in sequence.cuts.pieces(start, border, most):
        of, count = ids[cut.tiles], cut.end - cut.start
        spans.append(Span(sequence.cache, len(of), count, cut.tiles, sequence.pictures))
        of += sequence.ids[cut.start : cut.end]
    return _Piece(sequence, spans, border)


def _joins(sequence: TokenSequence, pieces: Sequence[_Piece]) -> bool:
    """Whether a piece of it may be computed beside these: not where one of them will be kept for it to go on from."""
    if sequence.own_cache or sequence.pictures is not None or sequence.by_itself:
        return False
    return sequence.begun or not any(
        piece.border < len(piece.sequence.ids) and sequence.keys[: piece.border] == piece.sequence.keys[: piece.border]
        for piece in pieces
    )
