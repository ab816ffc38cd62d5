"""Blocks of a step: what fails in one ends its sequences alone, leaves their caches whole, or is heard after it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType

import mlx.core as mx

from mlx_delta.engine.sequence import TokenSequence


class ErrorsOf:
    """A block whose failure ends these sequences and no other; an interrupt is the caller's."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._sequences = sequences

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        for each in self._sequences:
            each.error, each.ended = error, True
        return True


class Restored:
    """A block that builds a graph: caches are as they were before it if it fails half way."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._before = [(each.cache, each.cache.held()) for each in sequences]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before, self._before = self._before, []  # a held state is not updated in place
        if error is not None:
            for cache, held in before:
                cache.restore(held)


def wait(rows: Sequence[TokenSequence]) -> float:
    """Seconds that the pass under way still took: else a prompt's parts would be timed with it, and it not at all."""
    begin = time.perf_counter()
    for row in rows:
        with ErrorsOf([row]):
            mx.eval(row.arrays())
    return time.perf_counter() - begin


def read(rows: Sequence[TokenSequence]) -> None:
    """The tokens in use, to each row's reader."""
    for row in rows:
        if row.error is None:  # else what it waits for may never come
            with ErrorsOf([row]):
                row.read()


AtOnce = Callable[[], AbstractContextManager[None]]


@contextmanager
def later_interrupt() -> Iterator[AtOnce]:
    """A block after which, and not within, Ctrl-C is heard: the step is for other threads' sequences too. But for what
    the block does ``with at_once():``, by what it is given."""
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if here else None
    if not callable(handler):
        yield nullcontext
        return
    heard: list[tuple[int, FrameType | None]] = []
    urgent = False

    def later(number: int, frame: FrameType | None) -> None:
        if urgent:
            handler(number, frame)
        else:
            heard.append((number, frame))

    @contextmanager
    def at_once() -> Iterator[None]:
        nonlocal urgent
        urgent = True
        try:
            yield
        finally:
            urgent = False

    signal.signal(signal.SIGINT, later)
    try:
        yield at_once
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])
