"""Whether the other ranks are still there: MLX may wait for ever for one that is gone, in C++, deaf to exceptions.

Its connections are watched from beside. A peer that closes its end is gone, or done; it is done where this rank is done
soon too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

_EVERY = 0.5  # seconds between two looks
_GRACE = 3.0  # seconds for this rank to end by itself, or to raise MLX's error


def connections() -> frozenset[int]:
    """The file descriptors of this process that are connected TCP sockets."""
    return frozenset(
        fd for fd in (int(each.name) for each in Path("/dev/fd").iterdir()) if fd > 2 and _is_connected(fd)
    )


def lost(fd: int) -> bool:
    """Whether the other end of a connection is closed. What it has sent is left for its reader."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def ended_when_lost(watched: Set[int], message: str) -> Iterator[None]:
    """A block whose process ends, with ``message`` on stderr and exit code 1, soon after a connection is lost."""

    def watch(done: threading.Event) -> None:
        while not done.wait(_EVERY):
            if any(lost(fd) for fd in watched):
                if not done.wait(_GRACE):
                    _end(message)
                return

    with _beside(watch):
        yield


@contextmanager
def _beside(watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """A block with ``watch`` in a thread beside, told when the block is done. SIGTERM, which mlx.launch sends to all
    where one has failed, ends the process at once: the main thread may be deaf."""
    done = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if here else None
    threading.Thread(target=watch, args=(done,), name="mlx-delta ranks", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if here:
            signal.signal(signal.SIGTERM, before)


def _end(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def _is_connected(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            connection.getpeername()
            return connection.family in (socket.AF_INET, socket.AF_INET6)
    except OSError:
        return False
