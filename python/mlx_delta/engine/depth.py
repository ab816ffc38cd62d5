"""How many drafts each sequence checks in the pass to come: from what passes were measured to take.

A pass over R rows takes t(R), whoever they are of; a draft by the head costs d more. A sequence whose drafts come true
with p1, then p2 where the first did, .. gives 1 + p1 + p1 p2 + .. tokens. So drafts are added where they are likeliest,
over all sequences, as long as tokens by time grow.

Where they would not, a pass tries some now and then, for machines, contexts and texts change; the more rarely, the more
often it was in vain. What all passes with drafts have lost in the end, whatever was expected of them, is booked, with
what they cost the pass after them: a try is made when what it may lose, and what was lost before, is less than a small
part of the time so far. All of this is an engine's, so a sequence goes on with what those before it have shown.
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
_REST = 64  # passes without drafts, after which it is asked again whether they pay
_LONGEST_PATIENCE = 2048  # passes between tries: as many as a rest at first, twice as many after each in vain
_HOPE = 0.8  # how often drafts may be right, when few were seen yet
_SHORT = 8  # passes with drafts in a row, at most, that were in vain
_LOSS = 0.006  # of all time, what passes with drafts may lose
_SAVED = 4  # passes that they may have gained before, and lose again
_TRY = 0.3  # of a pass, what a try costs besides its rows and drafts: the head reads what came before, nothing overlaps
CHEAP_ROW, DEAR_ROW = 0.05, 0.5  # of a pass that a row takes more until it was measured: on a GPU, and on a CPU
_GUESSED = 4  # drafts that were seen right or wrong, which a guess counts as
_STALE = 128  # passes with drafts in a row, after which some without are measured again; twice as many where it held,
_MOST_STALE = 1024  # up to so many
_COUNTED = 64  # passes without drafts that their mean is of: of fewer, chance would hide losses
_OLD = 512  # passes after which a measurement of drafts counts for nothing: contexts grow


class Costs:
    """Seconds that passes took, by their rows, and that a draft by the head takes on top.

    row, draft: of a pass, what one more takes, until it was measured.
    """

    def __init__(self, row: float = CHEAP_ROW, draft: float = CHEAP_ROW) -> None:
        self._row, self._draft = row, draft
        self._passes = 0
        self._of: defaultdict[int, deque[tuple[int, int, float]]] = defaultdict(lambda: deque(maxlen=9))
        self._drafts: deque[float] = deque(maxlen=9)
        self._known: dict[int, float] = {}  # medians, as far as they were asked for

    def note(self, rows: int, by_head: int, seconds: float) -> None:
        """A pass over so many rows, of which the head has drafted ``by_head``."""
        self._passes += 1
        self._of[rows].append((self._passes, by_head, seconds))
        self._known.pop(rows, None)

    def note_draft(self, seconds: float) -> None:
        self._drafts.append(seconds)
        self._known.clear()

    @property
    def draft(self) -> float:
        """Of one token by the head; 0 before any pass was measured."""
        if self._drafts:
            return statistics.median(self._drafts)
        return self._draft * statistics.median(each for _, _, each in self._of[1]) if self._of[1] else 0.0

    def _times(self, rows: int) -> list[float]:
        """Of the last passes over so many, without their drafts."""
        measured = self._of[rows]
        while measured[0][0] < measured[-1][0] - _OLD:
            measured.popleft()
        draft = self.draft
        return [max(seconds - draft * by_head, 0.5 * seconds) for _, by_head, seconds in measured]

    def _median(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = statistics.median(self._times(rows))
        return self._known[rows]

    def of(self, rows: int) -> float | None:
        """The median; where it was not measured, between those that were, or a little more than the nearest with fewer.
        None before any was."""
        measured = [count for count, times in self._of.items() if times]
        if not measured or rows in measured:
            return self._median(rows) if measured else None
        below = max((count for count in measured if count < rows), default=None)
        above = min((count for count in measured if count > rows), default=None)
        if below is None:
            assert above is not None
            return self._median(above)
        if above is None:  # where some are measured, hopefully: else what lies beyond is never seen
            each = self._row if len(measured) == 1 else min(self._row, CHEAP_ROW)
            return self._median(below) * (1 + each * (rows - below))
        share = (rows - below) / (above - below)
        return (1 - share) * self._median(below) + share * self._median(above)

    def scatter(self, rows: int) -> float:
        """How far passes are from their median, in parts of it: on a busy machine it says little."""
        if not self._of[rows]:
            return 0.0
        middle = self._median(rows)
        return statistics.median(abs(seconds - middle) for seconds in self._times(rows)) / middle

    @property
    def most(self) -> int:
        """Rows of the largest pass that was measured."""
        return max((count for count, times in self._of.items() if times), default=0)


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
            found.append((self._right[i] + _GUESSED * guess) / (self._tried[i] + _GUESSED))
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
    """What a sequence is to draft: so many tokens, and by whom. trial: the first after passes without."""

    drafter: str = MTP
    count: int = 0
    trial: bool = False


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
    """Shares the rows of each pass out among sequences. One for an engine.

    row, draft: what ``Costs`` begins with.
    """

    def __init__(self, row: float = CHEAP_ROW, draft: float = CHEAP_ROW) -> None:
        self.costs = Costs(row, draft)
        self.acceptance = {MTP: Acceptance(), LOOKUP: Acceptance()}
        self._passes = 0
        self._rest = 0  # passes before it is worth while to look again
        self._next_try = 0  # before this pass there is none
        self._patience = _REST  # passes from the next try, if it is in vain, to one more
        self._stale = _STALE
        self._seconds = self._lost = 0.0
        self._plain: dict[int, float] = {}  # by sequences, the mean of passes without drafts; the past fades
        self._counted = defaultdict[int, int](int)
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
        if self._drafted >= self._stale:
            self._rest, self._stale = _FIRST, min(2 * self._stale, _MOST_STALE)
        self._before, self._drafting = self._drafting, drafting
        self._rows, self._by_head = rows, by_head

    def took(self, seconds: float, sequences: int, tokens: int, waited: float = 0.0) -> None:
        """The pass, with nothing beside it: what it has brought to how many sequences. waited: of these seconds, for
        the end of the pass before it.

        A pass with drafts is read in its own step, one without in the next one: so the step after drafts waits for
        nothing. It is booked with them, for together they take what they take; and not measured.
        """
        self._seconds += seconds
        plain = self._plain.get(sequences)
        if self._drafting or self._before:
            if plain is not None:
                self._lost = max(-_SAVED * plain, self._lost + seconds - plain * tokens / sequences)
        else:
            count = self._counted[sequences] = min(self._counted[sequences] + 1, _COUNTED)
            self._plain[sequences] = seconds if plain is None else plain + (seconds - plain) / count
        if self._drafting or not self._before:
            self.costs.note(self._rows, self._by_head, seconds - waited)

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
        best, count, tokens, by_head, cost = 0.0, 0, float(sequences), 0, 0.0
        for n, (chance, i) in enumerate(options, 1):
            if rows + n > self.costs.most + 1:  # one step at a time into what is not known
                break
            tokens += chance
            by_head += drafters[i] == MTP
            seconds = (self.costs.of(rows + n) or plain) + draft * by_head
            gain = tokens / sequences * plain / seconds
            if gain > best:
                best, count, cost = gain, n, seconds - plain
        hope = (sequences + _HOPE) / sequences * plain / ((more or plain) + draft)
        if count == 0:
            self._rest = _SHORT  # until look-up knows something
            return {}
        if not self._may(best, hope, cost, plain, self.costs.scatter(rows)):
            return {}
        counts = defaultdict[int, int](int)
        for _, i in options[:count]:
            counts[i] += 1
        return {i: Drafts(drafters[i], n, not self._drafting) for i, n in counts.items()}

    def _may(self, gain: float, hope: float, cost: float, plain: float, scatter: float) -> bool:
        """Whether drafts are made that would make tokens come so much faster, ``hope`` if they were right as often as
        good ones are, in a pass that takes ``cost`` more than ``plain`` seconds. If not, nobody asks for a while."""
        left = _LOSS * self._seconds - self._lost
        hopeful = self.costs.most > 1 and hope >= _WORTH + scatter  # a few wrong drafts say little
        if gain >= (1.0 if self._drafting else _WORTH) + scatter:
            if left > -plain:
                if self._drafted >= _SHORT:
                    self._patience = _REST
                return True
        elif (hopeful or not self._drafting) and self._passes >= self._next_try:
            need = cost + _TRY * plain - hopeful * plain  # where no draft is right
            if left >= need:
                return True
        if self._drafting and self._drafted <= _SHORT and not hopeful:
            self._next_try = self._passes + self._patience
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
        self._stale = _STALE
        self._rest = _SHORT if hopeful else _REST
        return False


def _fixed(wish: Wish) -> Drafts:
    """As many as it has to draft, by the drafter whose first is the likelier to be right."""
    assert wish.count is not None
    most = {drafter: min(count, wish.count) for drafter, count in wish.most.items() if count > 0}
    if not most:
        return Drafts()
    drafter = max(most, key=lambda each: wish.acceptance[each].rates(1)[0])
    return Drafts(drafter, most[drafter])
