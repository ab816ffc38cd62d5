"""A stream of MLX's for what threads evaluate that may end before the process does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


class OneStream:
    """``with one_stream():`` around what threads evaluate, one at a time, be it another each time.

    MLX (0.32.4) gives each thread a stream of its own, and on the CPU keeps the stream's worker when the thread has
    ended. So all threads that may end before the process does evaluate on one. A thread may be in the block already.
    """

    def __init__(self) -> None:
        self._stream: mx.Stream | None = None
        self._lock = threading.RLock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if threading.current_thread() is threading.main_thread() or mx.default_device() != mx.cpu:
            yield
            return
        with self._lock:
            if self._stream is None:
                self._stream = mx.new_thread_unsafe_stream(mx.cpu)
            with mx.stream(self._stream):
                yield
