"""A cache that can go back: to marks, set where a later prompt is likely to go on from.

Keys and values are rows, so going back means to count fewer of them. The states of gated-delta layers cannot be cut
back; a mark holds references to them, which costs nothing but the one copy when the cache goes on. So everything up to
the newest mark is held once, whatever the number of marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_delta.chat.request import common_prefix
from mlx_delta.config import TextConfig
from mlx_delta.model.cache import Cache, DeltaState

_NEWEST = 4  # marks kept, besides those of the head and the lasting one


@dataclass(frozen=True)
class _Mark:
    offset: int
    states: list[DeltaState]


class PrefixCache:
    """``cache`` is the one to run on. Between ``resume`` and the marks set then, nobody else may advance it."""

    def __init__(self, config: TextConfig) -> None:
        self.cache = Cache.empty(config)
        self._config = config
        self._ids: list[int] = []  # up to the newest mark
        self._marks: list[_Mark] = []  # ascending
        self._lasting = self._head = 0

    @property
    def nbytes(self) -> int:
        """Of all arrays held, marks included."""
        marked = [array for mark in self._marks for state in mark.states for array in state.arrays()]
        return sum({id(array): array.nbytes for array in [*self.cache.arrays(), *marked]}.values())

    def resume(self, ids: Sequence[int], lasting: int) -> int:
        """Go back to the last mark that ``ids`` go on from, at least one token before their end: its position.

        lasting: how many of the ids the conversation will keep for good; the last mark within them is never dropped.
        """
        shared = min(common_prefix(self._ids, ids), len(ids) - 1)
        self._marks = [mark for mark in self._marks if mark.offset <= shared]
        self._lasting = lasting
        if not self._marks:
            self.cache, self._ids = Cache.empty(self._config), []
            return 0
        mark = self._marks[-1]
        states = iter(mark.states)
        self.cache.layers = [
            replace(next(states)) if isinstance(layer, DeltaState) else layer for layer in self.cache.layers
        ]
        self.cache.offset, self.cache.rope_delta = mark.offset, 0
        self._ids = list(ids[: mark.offset])
        return mark.offset

    def mark(self, ids: Sequence[int], *, head: bool = False) -> None:
        """Remember this point: the cache covers exactly ``ids``. head: other conversations begin so too; never dropped,
        until one that does not."""
        if len(ids) != self.cache.offset:
            raise ValueError(f"ids: expected the {self.cache.offset} that the cache covers, found {len(ids)}")
        if self._marks and self._marks[-1].offset == len(ids):
            return
        self._head = len(ids) if head else self._head
        states = [replace(layer) for layer in self.cache.layers if isinstance(layer, DeltaState)]
        self._ids = list(ids)
        self._marks.append(_Mark(len(ids), states))
        kept = {mark.offset for mark in self._marks[-_NEWEST:]} | {self._head}
        kept |= {mark.offset for mark in [mark for mark in self._marks if mark.offset <= self._lasting][-1:]}
        self._marks = [mark for mark in self._marks if mark.offset in kept]
