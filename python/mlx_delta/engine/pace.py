"""How much of a prompt is computed in a step beside the tokens of others: as much as delays none of them much."""

from __future__ import annotations

from collections import deque
from statistics import median

_MOST = 1.5  # of the time that a step of decoding takes: with itself 2.5, and 3 is what is promised
_STEPS = 32  # of which the median is taken


class Pace:
    """Measured times. A layer of a piece is the least that a step computes; a piece may take many steps."""

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=_STEPS)  # steps of decoding, with no prompt beside them
        self._beside: deque[float] = deque(maxlen=_STEPS)
        self._per_token = 0.0  # seconds of a layer, of the last that was computed

    def decoded(self, seconds: float, *, beside: bool) -> None:
        """A step of decoding took so long, after a part of a prompt or without one."""
        (self._beside if beside else self._alone).append(seconds)

    def layer(self, tokens: int, seconds: float) -> None:
        """A layer of a prompt took so long."""
        self._per_token = seconds / tokens

    @property
    def seconds(self) -> float:
        """How long a step may compute a prompt while others decode.

        By the steps without one, if they are faster: those beside a prompt are slower the more of it is computed.
        """
        return _MOST * min((median(times) for times in (self._alone, self._beside) if times), default=0.0)

    def tokens(self, least: int, most: int) -> int:
        """How many at once, so that a layer takes no longer: a multiple of ``least``."""
        if not self._per_token or not self.seconds:
            return least
        return max(least, min(most, int(self.seconds / self._per_token) // least * least))
