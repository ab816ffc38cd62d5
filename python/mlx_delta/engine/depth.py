"""How many drafts each sequence checks in the pass to come: from what passes were measured to take.

A pass over R rows takes t(R), whoever they are of; a draft by the head costs d more. A sequence whose drafts come true
with p1, then p2 where the first did, .. gives 1 + p1 + p1 p2 + .. tokens. So drafts are added where they are likeliest,
over all sequences, as long as tokens by time grow.

Where they would not, now and then a pass tries some, for machines, contexts and texts change. What passes with drafts
have lost in the end, whatever was expected of them, is booked: above a hundredth of the time, besides a pass, there are
none.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_delta.engine.draft import MOST_DRAFTS

MTP, LOOKUP = "mtp", "lookup"
MOST_BY_HEAD = 4  # drafts in a chain: beyond, hardly any is right
_WORTH = 1.03  # so much faster, or no drafts: what was measured is never exact
_FIRST = 4  # passes without drafts before the first with some: what the gain is measured against
_TRY = 2  # passes in a try, of which the first waits for the pass before it and is not measured
_REST = 8  # passes for which it is let be
_LOSS = 0.008  # of all time, what passes with drafts may lose
_SAVED = 4  # passes that they may have gained before, and lose again
_ROW, _DRAFT = 0.05, 0.05  # of a pass that a row and a draft by the head take more, until they were measured
_STALE = 128  # passes with drafts in a row, after which some without are measured again
_OLD = 512  # passes after which a measurement of drafts counts for nothing: contexts grow


class Costs:
    """Seconds that passes took, by their rows, and that a draft by the head takes on top."""

    def __init__(self) -> None:
        self._passes = 0
        self._of: defaultdict[int, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=9))
        self._drafts: deque[float] = deque(maxlen=9)
        self._known: dict[int, float] = {}  # medians
        self._scatter: dict[int, float] = {}  # median distances from these, of these
        self.draft = 0.0  # of one token by the head

    def note(self, rows: int, by_head: int, seconds: float) -> None:
        """A pass over so many rows, of which the head has drafted ``by_head``."""
        self._passes += 1
        measured = self._of[rows]
        while measured and measured[0][0] < self._passes - _OLD:
            measured.popleft()
        measured.append((self._passes, max(seconds - self.draft * by_head, 0.5 * seconds)))
        self._known[rows] = statistics.median(seconds for _, seconds in measured)
        middle = self._known[rows]
        self._scatter[rows] = statistics.median(abs(seconds - middle) for _, seconds in measured) / middle
        if not self._drafts and 1 in self._known:
            self.draft = _DRAFT * self._known[1]

    def note_draft(self, seconds: float) -> None:
        self._drafts.append(seconds)
        self.draft = statistics.median(self._drafts)

    def of(self, rows: int) -> float | None:
        """The median; where it was not measured, between those that were, or a little more than the nearest with fewer.
        None before any was."""
        known = self._known
        if not known or rows in known:
            return known.get(rows)
        below = max((count for count in known if count < rows), default=None)
        above = min((count for count in known if count > rows), default=None)
        if below is None:
            assert above is not None
            return known[above]
        if above is None:
            return known[below] * (1 + _ROW * (rows - below))
        share = (rows - below) / (above - below)
        return (1 - share) * known[below] + share * known[above]

    def scatter(self, rows: int) -> float:
        """How far passes are from their median, in parts of it: on a busy machine it says little."""
        return self._scatter.get(rows, 0.0)

    @property
    def most(self) -> int:
        """Rows of the largest pass that was measured."""
        return max(self._known, default=0)

    @property
    def measured(self) -> bool:
        """Whether it is known what a draft takes."""
        return bool(self._drafts)


class Acceptance:
    """How often each draft of a chain is right when those before it are; the past fades.

    shared: of all sequences, for one that has shown little yet.
    """

    def __init__(self, shared: Acceptance | None = None) -> None:
        self._shared = shared
        self._right = [0.0] * MOST_DRAFTS
        self._tried = [0.0] * MOST_DRAFTS

    def note(self, drafts: int, accepted: int) -> None:
        for i in range(min(drafts, accepted + 1)):
            self._right[i] = 0.95 * self._right[i] + (i < accepted)
            self._tried[i] = 0.95 * self._tried[i] + 1
        if self._shared is not None:
            self._shared.note(drafts, accepted)

    def rates(self, drafts: int) -> list[float]:
        """Of each draft, given that those before it are right."""
        before = None if self._shared is None else self._shared.rates(drafts)
        found = list[float]()
        for i in range(drafts):
            guess = before[i] if before is not None else found[-1] if found else 0.6
            found.append((self._right[i] + 2 * guess) / (self._tried[i] + 2))
        return found

    def chances(self, drafts: int) -> list[float]:
        """Of each draft, that it and all before it are right."""
        reached, found = 1.0, []
        for rate in self.rates(drafts):
            reached *= rate
            found.append(reached)
        return found


@dataclass(frozen=True)
class Drafts:
    """What a sequence is to draft: so many tokens, and by whom. timed: to measure what a draft costs."""

    drafter: str = MTP
    count: int = 0
    timed: bool = False


@dataclass(frozen=True)
class Wish:
    """What a sequence can draft: at most ``most`` by each drafter. acceptance: how often each was right.

    count: how many it has to draft, if they are not the engine's choice.
    """

    most: dict[str, int]
    acceptance: dict[str, Acceptance]
    count: int | None = None

    def best(self, row: float, draft: float) -> tuple[str, list[float]]:
        """The drafter with the most tokens by what they cost, and the chances of its drafts. row, draft: what one costs
        of a pass."""

        def value(drafter: str, chances: list[float]) -> float:
            each = row + (draft if drafter == MTP else 0.0)
            return max(
                ((1 + sum(chances[:n])) / (1 + n * each) for n in range(1, len(chances) + 1)),
                default=0.0,
            )

        options = [(drafter, self.acceptance[drafter].chances(most)) for drafter, most in self.most.items() if most > 0]
        return max(options, key=lambda option: value(*option), default=(MTP, []))


class Depths:
    """Shares the rows of each pass out among sequences. One for an engine."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.acceptance = {MTP: Acceptance(), LOOKUP: Acceptance()}
        self._passes = 0
        self._rest = 0  # passes before it is worth while to look again
        self._try = 0  # passes of a try that are left
        self._tried = False
        self._seconds = self._lost = 0.0
        self._plain: dict[int, float] = {}  # by sequences, the mean of passes without drafts; the past fades
        self._rows = self._by_head = 0  # of the pass under way
        self._drafted = 0  # passes with drafts in a row
        self._drafting = self._before = False  # whether it has drafts; whether the one before had

    @property
    def rests(self) -> bool:
        """Whether drafts have just been found not to pay, so that nobody need wish for some in this pass."""
        return self._rest > 0

    def share(self, wishes: Sequence[Wish | None]) -> list[Drafts]:
        """Of each sequence of the pass to come; None: it does not draft."""
        found = [Drafts() if wish is None or wish.count is None else _fixed(wish) for wish in wishes]
        free = {i: wish for i, wish in enumerate(wishes) if wish is not None and wish.count is None}
        if free and self._passes >= _FIRST:
            for i, drafts in self._choose(free, len(wishes) + sum(each.count for each in found), len(wishes)).items():
                found[i] = drafts
        return found

    def began(self, rows: int, by_head: int, *, drafting: bool) -> None:
        """The pass has so many rows, and the head has drafted so many of them."""
        self._passes += 1
        self._rest -= self._rest > 0
        self._drafted = self._drafted + 1 if drafting else 0
        if self._drafted >= _STALE:
            self._rest = _FIRST
        self._before, self._drafting = self._drafting, drafting
        self._rows, self._by_head = rows, by_head

    def took(self, seconds: float, sequences: int, tokens: int) -> None:
        """The pass, with nothing beside it: what it has brought to how many sequences.

        One with drafts waits for its own end, one without for the end of the pass before: so passes after one of the
        other kind are not measured.
        """
        self._seconds += seconds
        plain = self._plain.get(sequences)
        if self._drafting and plain is not None:
            self._lost = max(-_SAVED * plain, self._lost + seconds - plain * tokens / sequences)
        elif not self._drafting and not self._before:
            self._plain[sequences] = seconds if plain is None else 0.95 * plain + 0.05 * seconds
        if self._before == self._drafting:
            self.costs.note(self._rows, self._by_head, seconds)

    def _choose(self, free: dict[int, Wish], rows: int, sequences: int) -> dict[int, Drafts]:
        plain = self.costs.of(rows)
        if plain is None:
            return {}
        draft = self.costs.draft
        more = self.costs.of(rows + 1)
        row = max(0.0, (more or plain) - plain) / plain
        drafters, options = dict[int, str](), list[tuple[float, int]]()
        for i, wish in free.items():
            drafters[i], chances = wish.best(row, draft / plain)
            options += [(chance, i) for chance in chances]
        options.sort(key=lambda option: -option[0])  # stable, so a sequence's first draft comes before its second
        best, count, tokens, by_head, loss = 0.0, 0, float(sequences), 0, 0.0
        for n, (chance, i) in enumerate(options, 1):
            if rows + n > self.costs.most + 1:  # one step at a time into what is not known
                break
            tokens += chance
            by_head += drafters[i] == MTP
            seconds = (self.costs.of(rows + n) or plain) + draft * by_head
            gain = tokens / sequences * plain / seconds
            if gain > best:
                best, count, loss = gain, n, seconds - plain * tokens / sequences
        lost = self._lost > _LOSS * self._seconds + plain
        worth = _WORTH + self.costs.scatter(rows)
        if count == 0 or lost or (best < worth and not self._may_try(loss, plain)):
            self._rest = _REST
            return {}
        counts = defaultdict[int, int](int)
        for _, i in options[:count]:
            counts[i] += 1
        timed = self._try == _TRY - 1 or not self.costs.measured
        return {i: Drafts(drafters[i], n, timed and drafters[i] == MTP) for i, n in counts.items()}

    def _may_try(self, loss: float, plain: float) -> bool:
        """Whether a try can be paid, or is under way."""
        if self._try > 0:
            self._try -= 1
            return True
        risk = (_TRY + 1) * max(loss, 0.1 * plain)  # it may be worse than expected
        if self._tried and max(0.0, self._lost) + risk > _LOSS * self._seconds:
            return False
        self._tried, self._try = True, _TRY - 1
        return True


def _fixed(wish: Wish) -> Drafts:
    """As many as it has to draft, by the drafter whose first is the likelier to be right."""
    assert wish.count is not None
    most = {drafter: min(count, wish.count) for drafter, count in wish.most.items() if count > 0}
    if not most:
        return Drafts()
    drafter = max(most, key=lambda each: wish.acceptance[each].rates(1)[0])
    return Drafts(drafter, most[drafter])
