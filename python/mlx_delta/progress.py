"""How far a long run is, told on stderr: bars at a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Show = Callable[[int, int], None]  # what is done, of how much
INTERVAL = 5.0  # seconds between lines where there is no terminal


def of(unit: str) -> Callable[[int, int], str]:
    """``3/12 unit``"""
    return lambda done, total: f"{done:,}/{total:,} {unit}"


def megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"


class Bars:
    """A context in which tasks are shown, each from its first step on; nothing is left of them afterwards.

    A run that fails before its first step, and a short one whose stderr is no terminal, show nothing at all.
    """

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._numbers: dict[str, TaskID] = {}  # of the tasks whose bars are there
        self._next_line = time.monotonic() + INTERVAL

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away; the next step of a task brings its own back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._numbers.clear()

    def task(self, name: str, counts: Callable[[int, int], str]) -> Show:
        """What to call after each step. counts: ``done`` and ``total`` in words."""
        if not sys.stderr.isatty():
            return lambda done, total: self._print(name, counts(done, total), done / max(1, total))

        def show(done: int, total: int) -> None:
            live = self._bars()
            if name not in self._numbers:
                self._numbers[name] = live.add_task(name, total=total, counts="")
            live.update(
                self._numbers[name], completed=done, total=total, counts=counts(done, total), visible=done < total
            )

        return show

    def _bars(self) -> Progress:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[counts]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=Console(stderr=True), transient=True)
            self._live.start()
        return self._live

    def _print(self, name: str, counts: str, part: float) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + INTERVAL
            print(f"{name}: {counts}, {100 * part:.0f} %", file=sys.stderr, flush=True)
