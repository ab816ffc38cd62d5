"""How many tokens to draft, and by whom: from what passes were measured to take, and how many drafts came true.

A pass that checks k drafts gives 1 + p1 + p1 p2 + .. + p1 .. pk tokens on average, where pj is how often the j-th draft
is right when those before it are. It pays where that is more than what it takes longer than a pass without drafts.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_delta.engine.draft import MOST_DRAFTS, LookupDrafter, MtpDrafter
from mlx_delta.model.network import Network

MTP, LOOKUP, PLAIN = "mtp", "lookup", "plain"
_MOST_BY_HEAD = 4  # drafts in a chain: beyond, hardly any is right
_WORTH = 1.03  # so much faster, or no drafts: what was measured is never exact
_FIRST = 4  # passes without drafts before the first with some: what the gain is measured against
_WAIT = 64, 1024  # tokens between two tries where drafts do not pay: the first time, and at most
_TRY = 2  # passes in a try, of which the first waits for the pass before it and is not measured
_GUESS = {MTP: 0.10, LOOKUP: 0.05}  # of a pass that a draft takes, until it was measured


@dataclass
class Costs:
    """Seconds that passes of one sequence alone took, by drafter and drafts."""

    _of: defaultdict[tuple[str, int], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=15))
    )

    def note(self, drafter: str, drafts: int, seconds: float) -> None:
        self._of[drafter, drafts].append(seconds)

    def of(self, drafter: str, drafts: int) -> float | None:
        """The median; where it was not measured, from the nearest that was. None before any was."""
        if found := self._of.get((drafter, drafts)):
            return statistics.median(found)
        measured = [k for name, k in self._of if name == drafter]
        if drafter == PLAIN:
            return None
        if not measured:
            plain = self.of(PLAIN, 0)
            return None if plain is None else plain * (1 + _GUESS[drafter] * drafts)
        nearest = min(measured, key=lambda k: abs(k - drafts))
        return statistics.median(self._of[drafter, nearest]) * (1 + _GUESS[drafter] * (drafts - nearest))


class Acceptance:
    """How often each draft of a chain is right when those before it are; the past fades."""

    def __init__(self) -> None:
        self._right = [0.0] * MOST_DRAFTS
        self._tried = [0.0] * MOST_DRAFTS

    def note(self, drafts: int, accepted: int) -> None:
        for i in range(min(drafts, accepted + 1)):
            self._right[i] = 0.95 * self._right[i] + (i < accepted)
            self._tried[i] = 0.95 * self._tried[i] + 1

    def tokens(self, drafts: int) -> float:
        """That a pass with so many drafts gives."""
        total, reached, before = 1.0, 1.0, 0.6
        for i in range(drafts):
            before = (self._right[i] + 2 * before) / (self._tried[i] + 2)
            reached *= before
            total += reached
        return total


class Speculation:
    """One sequence's: what it drafts, and whether it does.

    drafts: of each pass; None: as many as pay. drafted, accepted: tokens so far.
    """

    def __init__(self, network: Network, ids: Sequence[int], drafts: int | None, costs: Costs) -> None:
        self.drafted = self.accepted = 0
        self._drafts = drafts
        self._costs = costs
        self._lookup = LookupDrafter(ids)
        self._head = None if network.mtp is None else MtpDrafter(network)
        self._acceptance = {MTP: Acceptance(), LOOKUP: Acceptance()}
        self._passes = self._plain = 0  # in all, and without drafts in a row
        self._wait = _WAIT[0]
        self._try = 0  # passes of a try that are left
        self._last = PLAIN, 0  # the pass under way, and the one before
        self._before = PLAIN, 0

    def read(self, ids: Sequence[int], x: mx.array, left: int) -> None:
        """A piece of the prompt was computed: x [1, n, hidden] as the last layer gave it; ``left`` tokens follow."""
        if self._head is not None:
            self._head.read(ids, x, left)

    def draft(self, token: mx.array, most: int) -> mx.array | None:
        """What may follow ``token``, int [1], which follows the text: at most ``most`` drafts, int [n]; None: none."""
        self._before = self._last
        self._passes += 1
        drafter, count, found = self._choose(token, min(most, MOST_DRAFTS))
        drafts = mx.array(found, dtype=mx.int32) if found else None
        if drafter == MTP and self._head is not None:
            drafts = self._head.draft(token, count)
        self._last = (drafter, drafts.shape[0]) if drafts is not None else (PLAIN, 0)
        self._plain = 0 if drafts is not None else self._plain + 1
        return drafts

    def seen(self, x: mx.array, tokens: Sequence[int], checked: int | None) -> None:
        """What the last layer gave of the tokens of a pass that count, and those after all of them but the last.

        checked: the drafts that the pass has checked, of which ``tokens`` were right; None: it had none.
        """
        if self._head is not None:
            self._head.seen(x, tokens)
        if checked is not None:
            self.drafted += checked
            self.accepted += len(tokens)
            self._acceptance[self._last[0]].note(checked, len(tokens))

    def push(self, token: int) -> None:
        """The text goes on with it."""
        self._lookup.extend([token])

    def took(self, seconds: float) -> None:
        """The last pass, with this sequence alone. One that drafts waits for its own end, one that does not for the end
        of the pass before: so passes after one of the other kind are not counted."""
        if (self._before[0] == PLAIN) == (self._last[0] == PLAIN):
            self._costs.note(*self._last, seconds)

    def arrays(self) -> list[mx.array]:
        return [] if self._head is None else self._head.arrays()

    def _choose(self, token: mx.array, most: int) -> tuple[str, int, list[int]]:
        """A drafter, how many drafts, and which, where they are known already."""
        if most < 1:
            return PLAIN, 0, []
        found = self._looked_up(token, most if self._drafts is None else min(most, self._drafts))
        if self._drafts is not None:
            by_head = self._head is not None and (
                not found or self._acceptance[MTP].tokens(1) >= self._acceptance[LOOKUP].tokens(1)
            )
            return (MTP, min(most, self._drafts), []) if by_head else (LOOKUP, len(found), found)
        plain = self._costs.of(PLAIN, 0)
        if plain is None or self._passes < _FIRST:
            return PLAIN, 0, []
        options = [(MTP, k) for k in range(1, min(most, _MOST_BY_HEAD) + 1)] if self._head is not None else []
        options += [(LOOKUP, k) for k in range(1, len(found) + 1)]
        if not options:
            return PLAIN, 0, []
        gain, drafter, count = max((self._gain(*option, plain), *option) for option in options)
        if gain >= _WORTH:
            self._wait, self._try = _WAIT[0], 0
        elif self._try > 0:
            self._try -= 1
        elif self._plain >= self._wait:
            self._wait, self._try = min(2 * self._wait, _WAIT[1]), _TRY - 1
        else:
            return PLAIN, 0, []
        return drafter, count, found[:count] if drafter == LOOKUP else []

    def _gain(self, drafter: str, count: int, plain: float) -> float:
        seconds = self._costs.of(drafter, count)
        return 0.0 if not seconds else self._acceptance[drafter].tokens(count) * plain / seconds

    def _looked_up(self, token: mx.array, most: int) -> list[int]:
        """Its value is waited for only where the text before it has been there before."""
        if not self._lookup.familiar:
            return []
        return self._lookup.draft(int(np.array(token)[0]), most)
