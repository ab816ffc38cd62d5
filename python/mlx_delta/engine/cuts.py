"""Where a prompt is cut, and which way each piece of it is computed: by its token ids alone, not by what is kept of it.

A prompt is a row of turns, each from the token that opens one to the next. A turn of the assistant is computed as it
would have been generated: by rows, each token for itself, so that it may be cut anywhere. Any other is computed by
tiles, from multiples of ``ALIGNED`` tokens from the turn's beginning, where chunks of gated_delta begin; a piece of at
most ``DECODE_TOKENS`` tokens, which no tile is made for, by rows. So a cache that ends at such a place has the very
bits of any other that covers the same ids: computed at once, in pieces, or decoded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_delta._core import DECODE_TOKENS

ALIGNED = 64  # tokens: chunks of gated_delta and stretches of attention begin at multiples of it
CHUNK = 512  # tokens of a pass: enough rows to be bound by arithmetic, few enough that activations stay small
FAR = 2048  # tokens, a multiple of ALIGNED: as many bytes of keys and values as states have, about


@dataclass(frozen=True)
class Turns:
    """How turns show in token ids. start: what opens one; None: nothing does. assistant: what comes then, where it is
    the assistant's."""

    start: int | None = None
    assistant: tuple[int, ...] = ()


NO_TURNS = Turns()


@dataclass(frozen=True)
class Piece:
    """ids[start:end], by tiles or by rows."""

    start: int
    end: int
    tiles: bool


class Cuts:
    """Those of the prompt ``ids``."""

    def __init__(self, ids: Sequence[int], turns: Turns) -> None:
        self.start = turns.start
        starts = [i for i, each in enumerate(ids) if each == turns.start and i > 0]
        self._starts = [0, *starts] if turns.start is not None else [0]
        self._ends = [*self._starts[1:], len(ids)]
        first = 0 if ids and ids[0] == turns.start else 1  # what comes before any turn is nobody's
        self._answers = [False] * first
        for start in self._starts[first:]:
            after = tuple(ids[start + 1 : start + 1 + len(turns.assistant)])
            self._answers.append(bool(turns.assistant) and after == turns.assistant)

    @property
    def starts(self) -> list[int]:
        """Where the turns begin, the first at 0."""
        return self._starts

    @property
    def opened(self) -> bool:
        """Whether the prompt ends within a turn of the assistant: what is generated then goes on with it."""
        return self._answers[-1]

    def before(self, position: int) -> int:
        """The last place up to ``position`` where a cache has the same bits whatever comes then."""
        turn = self._turn(position)
        start = self._starts[turn]
        return position if self._answers[turn] else start + (position - start) // ALIGNED * ALIGNED

    def border(self, position: int) -> int:
        """The next place after ``position`` where other prompts are likely to go on from, or the end.

        Those are: where the first turn ends, which is the system message with the tools; where the last two begin, so
        that an edited question costs no more than itself, nor an answer without the thoughts that it was given with;
        and every ``FAR`` tokens of a turn. Of a prompt without turns, the last multiple of ``CHUNK``, where a pass ends
        anyway: what comes after it may be another question about the same text.
        """
        turn = self._turn(position)
        far = self._starts[turn] + ((position - self._starts[turn]) // FAR + 1) * FAR
        ends = [*self._starts[1:2], *self._starts[1:][-2:], far if far < self._ends[turn] else self._ends[-1]]
        if len(self._starts) == 1 and not self.opened:
            ends.append((self._ends[-1] - 1) // CHUNK * CHUNK)
        return min((each for each in ends if each > position), default=self._ends[-1])

    def pieces(self, start: int, end: int, most: int) -> list[Piece]:
        """From ``start``, about ``most`` tokens, at least one piece. start and end: places (``before``), or the end."""
        found: list[Piece] = []
        last = start + most
        while start < end:
            turn = self._turn(start)
            until = min(end, self._ends[turn])
            if self._answers[turn]:
                stop, tiles = min(until, max(last, start + 1)), False
            else:
                rest = (until - start) % ALIGNED
                stop = until - rest if rest <= DECODE_TOKENS < until - start else until
                stop = stop if stop <= last else min(stop, start + max(1, (last - start) // ALIGNED) * ALIGNED)
                tiles = stop - start > DECODE_TOKENS
            if found and stop > last:
                break
            found.append(Piece(start, stop, tiles))
            start = stop
        return found

    def by_rows(self) -> np.ndarray:
        """bool [ids]: which of them are computed by rows."""
        found = np.zeros(self._ends[-1], dtype=bool)
        for start, end, answer in zip(self._starts, self._ends, self._answers, strict=True):
            rest = end - start if answer else (end - start) % ALIGNED
            if answer or rest <= DECODE_TOKENS:
                found[end - rest : end] = True
        return found

    def _turn(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1
