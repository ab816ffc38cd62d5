"""One thread at a time: what goes on in steps is left half done between two of them, and must not be entered then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mlx_delta.errors import BusyError


class Exclusive:
    """``with exclusive:`` around each use; any thread may be the next one, but none at the same time.

    what: as the error names it. Raises: BusyError where another thread is inside.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()

    @contextmanager
    def after(self) -> Iterator[None]:
        """A block that waits for the thread inside to leave, which has been told to."""
        with self._lock:
            yield

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"{self._what}: expected one use at a time, found another thread in it: give each thread its own"
            )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
