"""Ranks hear of one another's end, before MLX has connected them and after."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_delta.distributed.beside import Line
from mlx_delta.distributed.meeting import COMMANDS, Place, begin, launched, started_within
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.errors import RankError

# A rank with a process beside it. In C++ that keeps Python's lock, as MLX's ring does while it connects, it is deaf.
_RANK = """
import ctypes, json, sys, time
from mlx_delta.distributed.meeting import Meeting, Place
place, within, then = json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
meeting = Meeting(Place(**place), within)
meeting.connecting()
print("go", flush=True)
if then == "is deaf":
    ctypes.PyDLL(None).sleep(20)
meeting.connected()
with meeting.watched():
    if then == "waits":
        sys.stdin.readline()
        print(meeting._lost or "none is lost")
print(meeting._process.wait())
"""
_TOKEN = "token"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def ports() -> list[int]:
    """Of three ranks."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for free in (a, b, c):
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in (a, b, c)]


@pytest.fixture
def start(ports: list[int]) -> Iterator[Start]:
    """A rank of a ring."""
    processes: list[subprocess.Popen[str]] = []

    def one(rank: int, size: int, *, within: float = 30, then: str = "waits") -> subprocess.Popen[str]:
        right = (rank + 1) % size
        place = {"rank": rank, "size": size, "token": _TOKEN, "door": ("127.0.0.1", ports[rank])}
        place["to"] = ("127.0.0.1", ports[right], right)
        command = [sys.executable, "-c", _RANK, json.dumps(place), str(within), then]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield one
    for process in processes:
        process.kill()
        process.communicate()


def joined(port: int, rank: int) -> socket.socket:
    """As the process beside a rank reaches another."""
    end = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            break
        except ConnectionRefusedError:  # it is starting
            assert time.monotonic() < end
            time.sleep(0.05)
    connection.sendall(f"{_TOKEN} {rank}\n".encode())
    said(connection, _TOKEN)
    return connection


def said(connection: socket.socket, *lines: str) -> None:
    for line in lines:
        assert connection.recv(len(line) + 1, socket.MSG_WAITALL).decode() == f"{line}\n"


def ended_with(process: subprocess.Popen[str], message: str, code: int = 1) -> None:
    assert process.stderr is not None
    process.wait(timeout=20)
    assert (process.returncode, process.stderr.read().splitlines()[-1]) == (code, message)


def test_one_that_never_starts_is_waited_for_no_longer_than_that(start: Start) -> None:
    ended_with(
        start(0, 2, within=0.5),
        "mlx_delta.errors.RankError: rank 0 of 2: expected all ranks to start within 0.5 seconds of one another, "
        "found nothing of rank 1",
    )


def test_a_port_that_is_taken_is_named(start: Start, ports: list[int]) -> None:
    with socket.create_server(("127.0.0.1", ports[0])):
        _, errors = start(0, 2, within=0.3).communicate(timeout=20)
    assert f"rank 0 of 2: expected port {ports[0]} of 127.0.0.1, where ranks meet, to be free, found" in errors


def test_all_hear_of_an_end(start: Start) -> None:
    """The one that waits, and the one that is deaf, of one that is killed. It takes what ranks are given to end by
    themselves."""
    waits, deaf, killed = start(0, 3), start(1, 3, then="is deaf"), start(2, 3)
    for each in (waits, deaf, killed):
        assert each.stdout is not None
        assert each.stdout.readline() == "go\n"
    time.sleep(0.2)
    killed.kill()
    lost = "expected all ranks to go on, found that rank 2 has ended"
    ended_with(waits, f"error: rank 0 of 3: {lost}")
    ended_with(deaf, f"error: rank 1 of 3: {lost}", -signal.SIGKILL)


def test_a_stranger_is_not_heard(start: Start, ports: list[int]) -> None:
    process = start(0, 2)
    with joined(ports[0], 1) as rank:
        said(rank, "here 0", "connecting 0")
        for stranger in (b"lost 1\n", b"connecting 1\n", b"other 1\n", b"token one\n", b"token 2\n", b"x" * 4096):
            with socket.create_connection(("127.0.0.1", ports[0]), timeout=20) as connection:
                connection.sendall(stranger)
                with suppress(ConnectionResetError):  # of a line that was not read to its end
                    assert connection.recv(1) == b""
        rank.sendall(b"here 1\n")
        said(rank, "here 1")  # it waits, as before
        rank.settimeout(0.2)
        with pytest.raises(TimeoutError):
            rank.recv(1)
        assert process.poll() is None


def test_what_one_tells_the_next_hears(start: Start, ports: list[int]) -> None:
    process = start(0, 3)
    with joined(ports[0], 2) as left, socket.create_server(("127.0.0.1", ports[1])) as door:
        right, _ = door.accept()
        with right:
            said(right, f"{_TOKEN} 0")
            right.sendall(f"{_TOKEN}\nhere 1\nlost 1\n".encode())
            said(left, "here 0")
            heard = left.recv(4096).decode()
            while "lost 1" not in heard:
                heard += left.recv(4096).decode()
            assert "here 1" in heard
    ended_with(
        process,
        "mlx_delta.errors.RankError: rank 0 of 3: expected all ranks to go on, found that rank 1 has ended",
    )


def test_one_that_is_done_is_not_lost(start: Start) -> None:
    first, other = start(0, 2, then="is done"), start(1, 2)
    assert first.communicate(timeout=20) == ("go\n0\n", "")  # the process beside it has ended too
    assert other.stdout is not None
    assert other.stdout.readline() == "go\n"
    assert other.communicate("\n", timeout=20) == ("none is lost\n0\n", "")


def test_one_that_is_silent_is_asked() -> None:
    """As a machine that is off: by the kernel, with nothing under way and with something."""
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as connection:
        Line(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = socket.TCP_KEEPALIVE if sys.platform == "darwin" else socket.TCP_KEEPIDLE
        asked = [connection.getsockopt(socket.IPPROTO_TCP, name) for name in (idle, socket.TCP_KEEPINTVL)]
        assert [*asked, connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)] == [2, 1, 3]
        unanswered = (0x80, 5) if sys.platform == "darwin" else (socket.TCP_USER_TIMEOUT, 5000)
        assert connection.getsockopt(socket.IPPROTO_TCP, unanswered[0]) == unanswered[1]


@pytest.mark.parametrize("value", ["soon", "0", "inf", "nan"])
def test_how_long_to_wait_is_a_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DELTA_START_WITHIN", value)
    with pytest.raises(ValueError, match=f"MLX_DELTA_START_WITHIN: expected seconds, found '{value}'"):
        started_within(5)


def test_a_program_is_waited_for_as_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command is; for longer where it says nothing."""
    hosts = tmp_path / "hosts"
    hosts.write_text('[["127.0.0.1:5000"], ["127.0.0.1:5001"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    found = []

    def begun(place: Place, within: float) -> None:
        found.append(within)
        raise RankError("as far as this goes")

    monkeypatch.setattr("mlx_delta.distributed.meeting.Meeting", begun)
    for value in ("7", None):
        if value is None:
            monkeypatch.delenv("MLX_DELTA_START_WITHIN")
        else:
            monkeypatch.setenv("MLX_DELTA_START_WITHIN", value)
        for begins in (Ranks.launched, lambda: begin(COMMANDS)):
            with pytest.raises(RankError):
                begins()
    assert found == [7, 7, 60, 5]


def test_one_that_is_launched_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``mlx.launch -n 1`` does it."""
    hosts = tmp_path / "hosts"
    hosts.write_text("\n")
    monkeypatch.setenv("MLX_RANK", "0")
    assert launched()
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    assert not launched()
    hosts.write_text('[["127.0.0.1:5000"], ["127.0.0.1:5001"]]')
    assert launched()


def test_where_ranks_meet(tmp_path: Path) -> None:
    """In the ring each reaches the next, as in MLX's: over Thunderbolt no other address of it may be in reach."""
    hosts = [["10.0.0.1:5001", "10.0.1.1:5002"], ["10.0.0.2:5001", "10.0.1.2:5003"]]
    ring, devices = tmp_path / "ring", tmp_path / "devices"
    ring.write_text(json.dumps(hosts))
    devices.write_text(json.dumps([[None, "rdma_en2"], ["rdma_en2", None]]))

    def of(environment: dict[str, str]) -> Place:
        found = Place.of(environment)
        assert found is not None
        assert found.token
        return replace(found, token="")

    first, second = ("10.0.0.1", 5000), ("10.0.0.2", 4999)
    assert of({"MLX_RANK": "0", "MLX_HOSTFILE": str(ring)}) == Place(0, 2, "", first, (*second, 1))
    assert of({"MLX_RANK": "1", "MLX_HOSTFILE": str(ring)}) == Place(1, 2, "", second, (*first, 0))
    jaccl = {"MLX_JACCL_COORDINATOR": "10.0.0.1:5001", "MLX_IBV_DEVICES": str(devices)}
    assert of({**jaccl, "MLX_RANK": "0"}) == Place(0, 2, "", ("10.0.0.1", 5002), None)
    assert of({**jaccl, "MLX_RANK": "1"}) == Place(1, 2, "", None, ("10.0.0.1", 5002, 0))
    assert Place.of({"OMPI_COMM_WORLD_RANK": "1"}) is None
    assert Place.of({"MLX_RANK": "1", "MLX_HOSTFILE": str(tmp_path / "none")}) is None
