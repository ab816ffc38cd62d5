"""Whether all ranks are there while they connect: MLX waits for one that is gone as for one that is yet to start, in
C++, with Python's lock held, so that no thread of its process could watch.

Beside each rank stands a process, this module as a program of the standard library alone, from the rank's first
moment. Those of the others are connected to rank 0's, which hears of an end by a closed connection, at once, and tells
all; each then ends its own rank. They are done when all ranks have connected. A rank that has never started they cannot
hear of: it is waited for so long and no longer. The same holds where rank 0's port, the one below those of the ring or
above the one of JACCL, is taken or closed to the others, and with launchers that say no address (MPI's ends all ranks
itself).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# What mlx.launch sets for its backends (ring, jaccl, nccl), and what MPI's programs set.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WITHIN = 60.0  # seconds from where a rank begins to connect to where the last one does
_AGAIN = 0.1  # seconds to the next try
_LONGEST = 128  # bytes of a line
_CONNECTING, _CONNECTED, _OVER, _LOST = "connecting", "connected", "over", "lost"  # what is said, a line each


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
    """Where ranks meet. size: how many there are; 0 where that, and the address, is not known. token: what tells this
    run from others."""

    rank: int = 0
    size: int = 0
    host: str = ""
    port: int = 0
    token: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """As the launcher's variables have it."""
        try:
            rank = int(environment["MLX_RANK"])
            if coordinator := environment.get("MLX_JACCL_COORDINATOR"):
                about = Path(environment["MLX_IBV_DEVICES"]).read_text()
                size, (host, _, port) = len(json.loads(about)), coordinator.rpartition(":")
                return cls(rank, size, host, int(port) + 1, _token(coordinator + about))
            about = Path(environment["MLX_HOSTFILE"]).read_text()
            addresses = [[each.rpartition(":") for each in of] for of in json.loads(about)]
            lowest = min(int(port) for of in addresses for _, _, port in of)
            return cls(rank, len(addresses), addresses[0][0][0], lowest - 1, _token(about))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError):
            return cls()  # MLX says what is wrong, or needs neither


def _token(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Meeting:
    """The process beside this one, which ends this one where another rank is gone before all have connected."""

    def __init__(self, place: Place, within: float = _WITHIN) -> None:
        arguments = json.dumps({"place": asdict(place), "within": within, "parent": os.getpid()})
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def connecting(self) -> None:
        """This rank waits for the others from now on."""
        self._tell(_CONNECTING)

    def connected(self) -> None:
        """This rank is connected to all that it will be."""
        self._tell(_CONNECTED)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # where it has ended
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


_begun: list[Meeting] = []


def begin() -> Meeting | None:
    """That of this process, once; None where no launcher has started it."""
    if launched() and not _begun:
        _begun.append(Meeting(Place.of(os.environ)))
    return _begun[0] if _begun else None


@dataclass
class _Line:
    """A connection, by lines. rank: whose, -1 as long as it has not said so."""

    socket: socket.socket
    rank: int = -1
    held: bytes = b""

    def said(self) -> list[str] | None:
        """What is new; None at the end."""
        try:
            data = self.socket.recv(4096)
        except OSError:
            data = b""
        *lines, self.held = (self.held + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines] if data else None

    def say(self, line: str) -> None:
        with suppress(OSError):  # which its reader finds
            self.socket.sendall(f"{line}\n".encode())


class _Beside:
    """What the process beside a rank does."""

    def __init__(self, place: Place, within: float, parent: int) -> None:
        self.place, self.parent = place, parent
        self.end = math.inf
        self.within = within
        self.connected: set[int] = set()
        self.lines: list[_Line] = []
        self.door: socket.socket | None = None
        self.again = 0.0  # when to try the next time

    def run(self) -> None:
        if self.place.size and not self.place.rank:
            self.door = self._opened()
        while time.monotonic() < self.end:
            if self.place.size and self.place.rank and not self.lines and time.monotonic() >= self.again:
                self._reach()
            watched = [sys.stdin.buffer, *(line.socket for line in self.lines)]
            ready, _, _ = select.select([*watched, *([self.door] if self.door else [])], [], [], _AGAIN)
            for line in [each for each in self.lines if each.socket in ready]:
                self._hear(line)
            if self.door in ready and self.door is not None:
                self.lines.append(_Line(self.door.accept()[0]))
            if sys.stdin.buffer in ready:
                told = os.read(sys.stdin.fileno(), 64).decode().split()
                if not told:
                    return  # the rank has ended, and now its connections do
                if _CONNECTING in told:
                    self.end = time.monotonic() + self.within
                if _CONNECTED in told:
                    self._is_connected(self.place.rank)
        for line in self.lines:
            line.say(_OVER)
        if self.place.rank not in self.connected:
            self._kill(f"expected all ranks to connect within {self.within:g} seconds, found that they did not")

    def _opened(self) -> socket.socket | None:
        try:
            return socket.create_server((self.place.host, self.place.port), backlog=self.place.size)
        except OSError:
            return None

    def _reach(self) -> None:
        self.again = time.monotonic() + _AGAIN
        try:
            line = _Line(socket.create_connection((self.place.host, self.place.port), timeout=1))
        except OSError:
            return
        line.say(f"{self.place.token} {self.place.rank}")
        try:
            known = line.socket.recv(len(self.place.token), socket.MSG_WAITALL) == self.place.token.encode()
        except OSError:
            known = False
        if not known:  # another program's port
            line.socket.close()
            self.again = self.end
            return
        line.socket.settimeout(None)
        line.rank = 0
        self.lines.append(line)
        if self.place.rank in self.connected:
            line.say(_CONNECTED)

    def _is_connected(self, rank: int) -> None:
        self.connected.add(rank)
        if self.place.rank:
            for line in self.lines:
                line.say(_CONNECTED)
        elif len(self.connected) >= max(self.place.size, 1):
            for line in self.lines:
                line.say(_OVER)
            sys.exit()
        if not self.place.size:
            sys.exit()

    def _hear(self, line: _Line) -> None:
        said = line.said()
        for each in said or ():
            first, _, rest = each.partition(" ")
            if line.rank < 0:  # to rank 0: a rank of this run begins with its token
                if first != self.place.token or not rest.isdecimal():
                    said = None
                    break
                line.rank = int(rest)
                line.say(self.place.token)
            elif first == _OVER:
                sys.exit()
            elif first == _LOST:
                self._lose(rest)
            elif first == _CONNECTED:
                self._is_connected(line.rank)
        if said is None or len(line.held) > _LONGEST:
            self.lines.remove(line)
            line.socket.close()
            if line.rank >= 0:
                self._lose(str(line.rank))

    def _lose(self, rank: str) -> None:
        for line in self.lines if not self.place.rank else ():
            line.say(f"{_LOST} {rank}")
        self._kill(f"expected all ranks to connect, found that rank {rank} has ended")

    def _kill(self, what: str) -> None:
        which = f"rank {self.place.rank} of {self.place.size}" if self.place.size else "mlx.launch"
        print(f"error: {which}: {what}", file=sys.stderr, flush=True)
        os.kill(self.parent, signal.SIGKILL)
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the rank; this one follows it
    given = json.loads(sys.argv[1])
    _Beside(Place(**given["place"]), given["within"], given["parent"]).run()
