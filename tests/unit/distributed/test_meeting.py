"""Ranks hear of one another's end before MLX has connected them."""

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

from mlx_delta.distributed.meeting import Place, launched

# A rank in C++ that keeps Python's lock, as MLX's ring does while it connects, beside which stands a process.
_RANK = """
import ctypes, sys
from mlx_delta.distributed.meeting import Meeting, Place
meeting = Meeting(Place(int(sys.argv[1]), int(sys.argv[2]), "127.0.0.1", int(sys.argv[3]), "token"), float(sys.argv[4]))
meeting.connecting()
if sys.argv[5] == "connects":
    meeting.connected()
    print(meeting._process.wait(), flush=True)
ctypes.PyDLL(None).sleep(20)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start(port: int) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def one(rank: int, size: int, *, within: float = 30, then: str = "waits") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _RANK, *(str(each) for each in (rank, size, port, within, then))]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield one
    for process in processes:
        process.kill()
        process.communicate()


def joined(port: int, rank: int) -> socket.socket:
    """As the process beside a rank connects to rank 0's."""
    end = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            break
        except ConnectionRefusedError:  # it is starting
            assert time.monotonic() < end
            time.sleep(0.05)
    connection.sendall(f"token {rank}\n".encode())
    assert connection.recv(6, socket.MSG_WAITALL) == b"token\n"
    return connection


def ended_with(process: subprocess.Popen[str], message: str) -> None:
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (-signal.SIGKILL, f"error: {message}\n")


def test_one_that_never_starts_is_waited_for_no_longer_than_that(start: Start) -> None:
    ended_with(
        start(0, 2, within=0.5),
        "rank 0 of 2: expected all ranks to connect within 0.5 seconds, found that they did not",
    )


def test_rank_0_hears_of_an_end_and_tells_the_others(start: Start, port: int) -> None:
    process = start(0, 3)
    with joined(port, 1) as first, joined(port, 2) as second:
        first.close()
        assert second.recv(7, socket.MSG_WAITALL) == b"lost 1\n"
    ended_with(process, "rank 0 of 3: expected all ranks to connect, found that rank 1 has ended")


@pytest.mark.parametrize("said", [b"lost 1\n", b"connected\n", b"over\n", b"other 1\n", b"token one\n", b"x" * 4096])
def test_a_stranger_is_not_heard(said: bytes, start: Start, port: int) -> None:
    process = start(0, 2)
    with joined(port, 1) as rank:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
            stranger.sendall(said)
            with suppress(ConnectionResetError):  # of a line that was not read to its end
                assert stranger.recv(1) == b""
        rank.sendall(b"connected\n")
        rank.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it waits for its own rank, as before
            rank.recv(1)
        assert process.poll() is None


@pytest.mark.parametrize(("said", "lost"), [(b"", 0), (b"lost 2\n", 2)])
def test_others_hear_it_from_rank_0(said: bytes, lost: int, start: Start, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as door:
        door.settimeout(20)
        process = start(1, 3)
        connection, _ = door.accept()
        with connection:
            assert connection.recv(8, socket.MSG_WAITALL) == b"token 1\n"
            connection.sendall(b"token\n" + said)
        ended_with(process, f"rank 1 of 3: expected all ranks to connect, found that rank {lost} has ended")


def test_when_all_have_connected_it_is_over(start: Start) -> None:
    processes = [start(rank, 2, then="connects") for rank in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"  # those beside them have ended, and they have not
    assert [process.poll() for process in processes] == [None] * 2


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
    hosts = [["10.0.0.1:5001", "10.0.1.1:5002"], ["10.0.0.2:5001", "10.0.1.2:5003"]]
    ring, devices = tmp_path / "ring", tmp_path / "devices"
    ring.write_text(json.dumps(hosts))
    devices.write_text(json.dumps([[None, "rdma_en2"], ["rdma_en2", None]]))
    found = Place.of({"MLX_RANK": "1", "MLX_HOSTFILE": str(ring)})
    assert replace(found, token="") == Place(1, 2, "10.0.0.1", 5000)
    assert found.token
    jaccl = {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:5001", "MLX_IBV_DEVICES": str(devices)}
    assert replace(Place.of(jaccl), token="") == Place(0, 2, "10.0.0.1", 5002)
    assert Place.of({"OMPI_COMM_WORLD_RANK": "1"}) == Place()
    assert Place.of({"MLX_RANK": "1", "MLX_HOSTFILE": str(tmp_path / "none")}) == Place()
