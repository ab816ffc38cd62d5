"""Whether all ranks are there: MLX waits for one that is gone as for one that is yet to start, and once connected for
ever, in C++, deaf to exceptions; while it connects, with Python's lock held, so that no thread of its process could
watch.

Beside each rank stands a process (``beside``) from the rank's first moment to its last. Connected the way the ranks are
to be, these processes hear of a rank's end by a closed connection, and tell all. A rank begins to connect when all are
about to; one that has not started soon after the others ends them.

They meet at ports below those of the ring, one for each rank, or above the one of JACCL, at rank 0's address. With
launchers that say no address there are none: MPI's ends all ranks itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_delta.distributed import beside
from mlx_delta.errors import ArgumentError, RankError

# What mlx.launch sets for its backends (ring, jaccl, nccl), and what MPI's programs set.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
# Seconds between the starts of ranks, where the environment says nothing: commands begin with their processes, programs
# when they have come so far.
COMMANDS, PROGRAMS = 5.0, 60.0
_UNWATCHED = "0 ranks: expected the process that watches them to go on, found that it has ended"


def launched() -> bool:
    """Whether a launcher has started this process as one of several, or of one by MPI."""
    return any(name in os.environ for name in _LAUNCHED) and not _alone(os.environ)


def _alone(environment: Mapping[str, str]) -> bool:
    """Whether by ``mlx.launch -n 1``, which names a file of hosts with nothing in it."""
    try:
        return not Path(environment["MLX_HOSTFILE"]).read_text().strip()
    except (KeyError, OSError, ValueError):
        return False


@dataclass(frozen=True)
class Place:
    """Where ranks meet. token: what tells this run from others. door: where this one is reached, host and port. to:
    whom it reaches: host, port, rank."""

    rank: int
    size: int
    token: str
    door: tuple[str, int] | None
    to: tuple[str, int, int] | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """As the launcher's variables have it; None where they say no addresses, or what MLX will refuse."""
        try:
            rank = int(environment["MLX_RANK"])
            if coordinator := environment.get("MLX_JACCL_COORDINATOR"):
                about = Path(environment["MLX_IBV_DEVICES"]).read_text()
                host, _, port = coordinator.rpartition(":")
                first = (host, int(port) + 1)
                token = _token(coordinator + about)
                return cls(rank, len(json.loads(about)), token, None if rank else first, (*first, 0) if rank else None)
            about = Path(environment["MLX_HOSTFILE"]).read_text()
            addresses = [[each.rpartition(":") for each in of] for of in json.loads(about)]
            lowest = min(int(port) for of in addresses for _, _, port in of)
            doors = [(of[0][0], lowest - 1 - i) for i, of in enumerate(addresses)]
            right = (rank + 1) % len(doors)
            return cls(rank, len(doors), _token(about), doors[rank], (*doors[right], right))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError):
            return None


def _token(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Meeting:
    """The process beside this one, and what it says. within: seconds for all ranks to begin a meeting.

    Until this rank is connected, and in a block that is ``watched``, it ends where another is lost, with a line on
    stderr and exit code 1, or killed where it cannot end itself.
    """

    def __init__(self, place: Place, within: float) -> None:
        arguments = json.dumps({**asdict(place), "within": within, "parent": os.getpid()})
        command = [sys.executable, "-IS", beside.__file__, arguments]
        self._process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        # It is soon up, and would be later beside imports.
        os.read(self._process.stdout.fileno(), len(beside.UP) + 1)
        self._lost = ""  # what ends this rank
        self._waiting = False  # for the others, and raises an error itself
        self._heard = threading.Event()  # to go, or that
        self._watched, self._over = threading.Event(), threading.Event()
        self._watched.set()
        threading.Thread(target=self._listen, name="mlx-delta ranks", daemon=True).start()

    def connecting(self) -> None:
        """Returns when all ranks have come to this. Raises: RankError where one is lost."""
        self._waiting = True
        self._tell(beside.CONNECTING)
        self._heard.wait()
        if self._lost:
            raise RankError(self._lost)

    def connected(self) -> None:
        """This rank is connected to all that it will be."""
        self._waiting = False
        self._tell(beside.CONNECTED)
        self._watched.clear()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block whose process ends soon after another rank does; this one is done where it is left without an
        exception. SIGTERM, which mlx.launch sends to all where one has failed, ends the process at once: the main
        thread may be deaf."""
        here = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if here else None
        self._watched.set()
        try:
            yield
            self._tell(beside.DONE)
        finally:
            self._over.set()
            if here:
                signal.signal(signal.SIGTERM, before)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, of which the thread hears
            self._process.stdin.write(f"{line}\n".encode())

    def _listen(self) -> None:
        assert self._process.stdout is not None
        said, go = b"", f"{beside.GO}\n".encode()
        while data := os.read(self._process.stdout.fileno(), 4096):
            said += data
            if said == go:
                self._heard.set()
        grace, _, self._lost = (said.removeprefix(go).decode().strip() or _UNWATCHED).partition(" ")
        self._heard.set()
        self._watched.wait()
        if not self._over.wait(beside.GRACE if self._waiting else float(grace)):
            print(f"error: {self._lost}", file=sys.stderr, flush=True)
            os._exit(1)  # whatever the main thread waits for


_begun: list[Meeting] = []


def started_within(expected: float) -> float:
    """Seconds between the first rank's ``begin`` and the last one's: as the environment says, else ``expected``.

    Raises: ArgumentError.
    """
    value = os.environ.get("MLX_DELTA_START_WITHIN", expected)
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ArgumentError(f"MLX_DELTA_START_WITHIN: expected seconds, found {value!r:.40}")
    return seconds


def begin(expected: float) -> Meeting | None:
    """That of this process, once; None where no launcher has started it that says where ranks meet. expected: see
    ``started_within``, as is what it raises."""
    if launched() and not _begun and (place := Place.of(os.environ)):
        _begun.append(Meeting(place, started_within(expected)))
    return _begun[0] if _begun else None
