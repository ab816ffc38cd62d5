"""Stop strings across piece boundaries: text that may be the start of one is held back until it is decided."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_delta.errors import ArgumentError


class StopStrings:
    """Cuts a growing text before the first stop string. ``stopped`` is set once one was found, ``found`` is which."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = [stops]
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise ArgumentError(f"stop: expected non-empty strings, found {stop!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            self.stopped = True
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """The longest proper prefix of ``stop`` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
