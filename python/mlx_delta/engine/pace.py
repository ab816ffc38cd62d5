"""How much of a prompt is computed in a step beside the tokens of others: as much as delays none of them much."""

from __future__ import annotations

from collections import deque
from statistics import median

_MOST = 1.5  # of the time that a step of decoding takes: with itself 2.5, and 3 is what is promised
_STEPS = 32  # of which the median is taken


class Pace:
    """Measured times. A layer of a piece is the least that a step computes; a piece may take many steps."""

    def __init__(self) -> None:
        self._decoding: deque[float] = deque(maxlen=_STEPS)
        self._per_token = 0.0  # seconds of a layer, of the last that was computed

    def decoded(self, seconds: float) -> None:
        """A step of decoding took so long."""
        self._decoding.append(seconds)

    def layer(self, tokens: int, seconds: float) -> None:
        """A layer of a prompt took so long."""
        self._per_token = seconds / tokens

    @property
    def seconds(self) -> float:
        """How long a step may compute a prompt while others decode."""
        return _MOST * median(self._decoding) if self._decoding else 0.0

    def tokens(self, least: int, most: int) -> int:
        """How many at once, so that a layer takes no longer: a multiple of ``least``."""
        if not self._per_token or not self._decoding:
            return least
        return max(least, min(most, int(self.seconds / self._per_token) // least * least))
