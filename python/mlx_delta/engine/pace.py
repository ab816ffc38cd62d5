"""How much of a prompt is computed in a step beside the tokens of others: as much as delays none of them much."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

_MOST = 1.3  # of the time that a step of decoding takes: with itself 2.3, measured up to 2.8, and 3 is what is promised
_STEPS = 32  # of which the median is taken


class Pace:
    """Measured times. Half a layer of a piece is the least that a step computes; a piece may take many steps.

    part: which half of which layer. prefix: the tokens before the piece, which attention reads. rows: how many decode.
    """

    def __init__(self) -> None:
        # Seconds of steps of decoding, by their rows and whether there was a prompt beside them.
        self._steps: defaultdict[tuple[int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=_STEPS))
        self._parts: dict[int, tuple[float, int, int]] = {}  # its last time, of how many tokens, and where they ended

    def decoded(self, seconds: float, rows: int, *, beside: bool) -> None:
        """A step of decoding took so long, after a part of a prompt or without one."""
        self._steps[rows, beside].append(seconds)

    def took(self, part: int, prefix: int, tokens: int, seconds: float) -> None:
        """A part of a piece of a prompt took so long."""
        self._parts[part] = seconds, tokens, prefix + tokens

    def expected(self, part: int, prefix: int, tokens: int) -> float:
        """Seconds that a part will take, at most: by its last time, of fewer tokens as if half of it were for the
        weights, and where it was behind a shorter prefix as if all of it grew with that; 0 where there was none."""
        if part not in self._parts:
            return 0.0
        seconds, then, end = self._parts[part]
        share = tokens / then if tokens >= then else 0.5 + 0.5 * tokens / then
        return seconds * share * max(1.0, (prefix + tokens) / end)

    def seconds(self, rows: int) -> float:
        """How long a step may compute a prompt while so many sequences decode.

        By the steps without one, if they are faster: those beside a prompt are slower the more of it is computed. Of as
        many rows, or of the next fewer that were measured, or their share of more.
        """
        counts = {count for count, _ in self._steps}
        if not counts:
            return 0.0
        nearest = max((count for count in counts if count <= rows), default=min(counts))
        times = (self._steps.get((nearest, beside)) for beside in (False, True))
        return _MOST * min(median(each) for each in times if each) * min(1.0, rows / nearest)

    def tokens(self, prefix: int, least: int, most: int, rows: int) -> int:
        """How many at once, so that no part takes longer: a multiple of ``least``."""
        seconds = self.seconds(rows)
        if not self._parts or not seconds:
            return least
        for count in range(most // least * least, least, -least):
            if max(self.expected(part, prefix, count) for part in self._parts) <= seconds:
                return count
        return least
