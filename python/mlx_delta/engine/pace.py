"""How much of a prompt is computed in a step beside the tokens of others: as much as delays none of them much."""

from __future__ import annotations

from collections import deque
from statistics import median

_MOST = 1.5  # of the time that a step of decoding takes: with itself 2.5, and 3 is what is promised
_STEPS = 32  # of which the median is taken


class Pace:
    """Measured times. Half a layer of a piece is the least that a step computes; a piece may take many steps.

    part: which half of which layer. prefix: the tokens before the piece, which attention reads.
    """

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=_STEPS)  # steps of decoding, with no prompt beside them
        self._beside: deque[float] = deque(maxlen=_STEPS)
        self._parts: dict[int, tuple[float, int]] = {}  # seconds of a token when it was computed last, and the prefix

    def decoded(self, seconds: float, *, beside: bool) -> None:
        """A step of decoding took so long, after a part of a prompt or without one."""
        (self._beside if beside else self._alone).append(seconds)

    def took(self, part: int, prefix: int, tokens: int, seconds: float) -> None:
        """A part of a piece of a prompt took so long."""
        self._parts[part] = seconds / tokens, prefix + tokens

    def expected(self, part: int, prefix: int, tokens: int) -> float:
        """Seconds that a part will take, at most: by its last time, and where it was behind a shorter prefix as if all
        of it grew with that; 0 where there was none."""
        if part not in self._parts:
            return 0.0
        seconds, then = self._parts[part]
        return seconds * tokens * max(1.0, (prefix + tokens) / then)

    @property
    def seconds(self) -> float:
        """How long a step may compute a prompt while others decode.

        By the steps without one, if they are faster: those beside a prompt are slower the more of it is computed.
        """
        return _MOST * min((median(times) for times in (self._alone, self._beside) if times), default=0.0)

    def tokens(self, prefix: int, least: int, most: int) -> int:
        """How many at once, so that no part takes longer: a multiple of ``least``."""
        longest = max((self.expected(part, prefix, least) for part in self._parts), default=0.0)
        if not longest or not self.seconds:
            return least
        return max(least, min(most, int(self.seconds / longest) * least))
