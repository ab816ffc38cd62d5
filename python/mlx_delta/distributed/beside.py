"""The process beside a rank, a program of the standard library alone: it hears of another rank's end, whatever its own
rank is at.

Those of neighbours are connected, the way their ranks are to be. What one learns it tells the next: that a rank is
here, that it waits for the others, that it is done, that it is lost. A rank that ends before it is done closes its
pipe, at once, however it ends; a machine that is off or a cable that is pulled is found by the kernel's own questions
(keepalive), which are answered for a stopped, busy or swapped out process too. A machine that sleeps is lost.

Its rank hears of all this by its pipe; while MLX connects, with Python's lock held, it cannot, and is killed instead.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

# Between these processes, each with the number of a rank.
HERE, CONNECTING, DONE = "here", "connecting", "done"
MISSING, LOST, SILENT = "missing", "lost", "silent"
CONNECTED = "connected"  # told by the rank, which also says of itself that it is connecting or done
UP, GO = "up", "go"  # told to the rank, and last the seconds that it has left and what ends it
GRACE = 2.0  # seconds for a rank to end by itself where another has
_AGAIN = 0.1  # seconds to the next try
_LONGEST = 128  # bytes of a line
_SILENCE = 5  # seconds
_DARWIN_RXT_CONNDROPTIME = 0x80  # <netinet/tcp.h>, which Python has no name for


class Line:
    """A connection, by lines. rank: whose, -1 as long as it has not said so. greeted: whether both have."""

    def __init__(self, connection: socket.socket, rank: int = -1) -> None:
        self.socket, self.rank, self.greeted = connection, rank, False
        self.error: OSError | None = None
        self._held = b""
        connection.settimeout(None)
        _keep(connection)

    def said(self) -> list[str] | None:
        """What is new; None at the end."""
        data = b""
        try:
            data = self.socket.recv(4096)
        except OSError as error:
            self.error = error
        *lines, self._held = (self._held + data).split(b"\n")
        if not data or len(self._held) > _LONGEST:
            return None
        return [line.decode(errors="replace") for line in lines]

    def say(self, line: str) -> None:
        with suppress(OSError):  # which its reader finds
            self.socket.sendall(f"{line}\n".encode())


def _keep(connection: socket.socket) -> None:
    """An end that no longer answers is an error, after some seconds: with nothing under way, and with something."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    linux = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": _SILENCE - 2, "TCP_USER_TIMEOUT": 1000 * _SILENCE}
    darwin = {"TCP_KEEPALIVE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": _SILENCE - 2}
    for name, value in (darwin if sys.platform == "darwin" else linux).items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    if sys.platform == "darwin":
        connection.setsockopt(socket.IPPROTO_TCP, _DARWIN_RXT_CONNDROPTIME, _SILENCE)


class Beside:
    """door: where others reach this one, [host, port]; None for none. to: whom this one reaches, [host, port, rank].
    within: seconds for all to be here. parent: the rank's process."""

    def __init__(
        self,
        rank: int,
        size: int,
        token: str,
        door: tuple[str, int] | None,
        to: tuple[str, int, int] | None,
        within: float,
        parent: int,
    ) -> None:
        self.rank, self.size, self.token, self.parent = rank, size, token, parent
        self.at = (door[0], door[1]) if door else None  # JSON has lists
        self.to, self.within = to, within
        self.facts: dict[str, set[int]] = {kind: set() for kind in (HERE, CONNECTING, DONE, MISSING, LOST, SILENT)}
        self.lines: list[Line] = []
        self.door: socket.socket | None = None
        self.closed: OSError | None = None  # why the door is
        self.deaf = False  # whether the rank is, in MLX
        self.gone = False  # whether it has been told to go

    def run(self) -> None:
        end, again = time.monotonic() + self.within, 0.0
        self._learn(HERE, self.rank)
        self._tell(UP)
        while True:
            if not self.gone and time.monotonic() >= again:
                self._open()
                self._reach()
                again = time.monotonic() + _AGAIN
                if again >= end and len(self.facts[HERE]) < self.size:
                    self._miss()
            if len(self.facts[CONNECTING]) == self.size and not self.gone:
                self._go()
            doors = [self.door] if self.door else []
            ready, _, _ = select.select(
                [sys.stdin.buffer, *doors, *(line.socket for line in self.lines)], [], [], _AGAIN
            )
            if sys.stdin.buffer in ready:
                self._obey()
            for line in [each for each in self.lines if each.socket in ready]:
                self._hear(line)
            if self.door and self.door in ready:
                self.lines.append(Line(self.door.accept()[0]))

    def _open(self) -> None:
        if self.at and not self.door:
            try:
                self.door = socket.create_server(self.at, backlog=self.size)
            except OSError as error:
                self.closed = error

    def _reach(self) -> None:
        if self.to is None or any(line.rank == self.to[2] for line in self.lines):
            return
        host, port, rank = self.to
        with suppress(OSError):  # not yet there
            self.lines.append(Line(socket.create_connection((host, port), timeout=1), rank))
            self.lines[-1].say(f"{self.token} {self.rank}")

    def _go(self) -> None:
        self.gone = self.deaf = True
        if self.door:
            self.door.close()
            self.door = None
        self._tell(GO)

    def _obey(self) -> None:
        """What the rank says."""
        words = os.read(sys.stdin.fileno(), 4096).decode().split()
        if not words:  # it has ended
            self._learn(LOST, self.rank)
            self._leave()
        for word in words:
            if word == CONNECTED:
                self.deaf = False
            else:
                self._learn(word, self.rank)
            if word == DONE:
                self._leave()

    def _leave(self) -> None:
        """Closed with something unread, a connection would lose what was said last."""
        end = time.monotonic() + 1
        for line in self.lines:
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_WR)
        while self.lines and (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([line.socket for line in self.lines], [], [], left)
            self.lines = [line for line in self.lines if line.socket not in ready or line.said() is not None]
        sys.exit()

    def _hear(self, line: Line) -> None:
        said = line.said()
        for each in said or ():
            first, _, rest = each.partition(" ")
            known = rest.isdecimal() and int(rest) < self.size
            if line.greeted and first in self.facts and known:
                self._learn(first, int(rest))
            elif not line.greeted and first == self.token and known and line.rank < 0:
                line.rank = int(rest)
                line.say(self.token)
                self._greet(line)
            elif not line.greeted and each == self.token and line.rank >= 0:
                self._greet(line)
            else:  # another program, or another run
                said = None
                break
        if said is None:
            self.lines.remove(line)
            line.socket.close()
            if line.greeted and line.rank not in self.facts[DONE]:
                self._learn(SILENT if line.error and not isinstance(line.error, ConnectionError) else LOST, line.rank)

    def _greet(self, line: Line) -> None:
        line.greeted = True
        for kind, ranks in self.facts.items():
            for rank in ranks:
                line.say(f"{kind} {rank}")

    def _learn(self, kind: str, rank: int) -> None:
        """What is new here may be new to the others."""
        if rank in self.facts[kind]:
            return
        self.facts[kind].add(rank)
        for line in self.lines:
            if line.greeted:
                line.say(f"{kind} {rank}")
        if kind == MISSING:
            within = f"{self.within:g} seconds"
            self._lose(f"expected all ranks to start within {within} of one another, found nothing of rank {rank}", 0)
        if kind in (LOST, SILENT) and rank != self.rank:
            found = "has ended" if kind == LOST else f"has not been heard of for {_SILENCE} seconds"
            self._lose(f"expected all ranks to go on, found that rank {rank} {found}", GRACE if kind == LOST else 0)

    def _miss(self) -> None:
        if self.at and not self.door:
            port = f"port {self.at[1]} of {self.at[0]}"
            self._lose(f"expected {port}, where ranks meet, to be free, found {self.closed}", 0)
        self._learn(MISSING, min(set(range(self.size)) - self.facts[HERE]))

    def _lose(self, what: str, grace: float = GRACE) -> None:
        """This rank is to end. grace: seconds for it to tell an error of its own, such as the one that ended
        another."""
        what = f"rank {self.rank} of {self.size}: {what}"
        self._tell(f"{grace:g} {what}")
        end = time.monotonic() + GRACE
        while self.deaf and (left := end - time.monotonic()) > 0:
            if select.select([sys.stdin.buffer], [], [], left)[0]:
                words = os.read(sys.stdin.fileno(), 4096).decode().split()
                self.deaf = bool(words) and CONNECTED not in words
        if self.deaf and os.getppid() == self.parent:
            print(f"error: {what}", file=sys.stderr, flush=True)
            os.kill(self.parent, signal.SIGKILL)
        sys.exit(1)

    def _tell(self, line: str) -> None:
        with suppress(OSError):  # it has ended
            os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the rank; this one follows it
    Beside(**json.loads(sys.argv[1])).run()
