"""Snapshots in files: a restart computes what is new with the same bits, whatever became of the files meanwhile."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import load_model
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.engine import identity
from mlx_delta.engine.cuts import NO_TURNS, Cuts, Turns
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.identity import model_identity
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.engine.snapshots import Snapshots, checked_directory
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import DeltaState, KeyValues
from mlx_delta.model.network import Network
from support import TINY
from support.works import Work

TURNS = Turns(399, (398,))
SYSTEM = [399, *(7 * i % 390 for i in range(80))]
QUESTION = [399, *(5 * i % 390 for i in range(70)), 399, 398]


@pytest.fixture(scope="module")
def network() -> Network:
    return load_model(TINY, "bfloat16").network


def work(*ids: int) -> Work:
    return Work(ids, SamplingParams(temperature=0.7, seed=3), 4, 999, False, 2)


class Process:
    """As if one: an engine over a folder."""

    def __init__(self, folder: Path, network: Network, limit: int | None = None, least: int = 1) -> None:
        model = model_identity(network, TURNS)
        self.network = network
        self.snapshots = Snapshots(folder, model, network.kv_bits, limit, least)
        self.engine = Engine(network, TURNS, prefix_bytes=1 << 30, snapshots=self.snapshots)

    def run(self, asks: Work) -> tuple[list[object], int]:
        """What comes, and how many tokens of the prompt were known; all is written then."""
        sequence = asks.sequence(self.network)
        found = list(self.engine.run(sequence))
        self.snapshots.close()
        return found, sequence.known


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_a_restart_computes_what_is_new(network: Network, tmp_path: Path, kv_bits: int | None) -> None:
    network = replace(network, kv_bits=kv_bits)
    folder = tmp_path / "new" / "kept"
    first, again = Process(folder, network), Process(folder, network)
    asks = work(*SYSTEM, *QUESTION)
    expected, known = first.run(asks)
    assert expected == asks.alone(network, TURNS)
    assert known == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    files = list(folder.iterdir())
    assert len(files) >= 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    answer = [token for token, _ in expected]
    follow = work(*SYSTEM, *QUESTION, *answer, *QUESTION[:40])
    edited = work(*SYSTEM, *QUESTION[:30], 1, 2, 3, 399, 398)
    for one in (asks, follow, edited):
        known = first.engine.known(one.ids, one.ids)
        found = again.run(one)  # while the first goes on
        assert found == (one.alone(network, TURNS), known)
        assert known >= len(SYSTEM)
    again.engine.forget(follow.ids)
    assert not again.snapshots.chain(key_of(follow, network), lambda end: end > len(SYSTEM) + 30)


@dataclass
class Kept:
    """A folder after a question, and what comes of it."""

    folder: Path
    asks: Work
    expected: list[object]


@pytest.fixture(scope="module")
def kept(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder, asks = tmp_path_factory.mktemp("kept"), work(*SYSTEM, *QUESTION)
    return Kept(folder, asks, Process(folder, network).run(asks)[0])


def damage(file: Path, other: Path, how: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[rng.randrange(header) if how == "header" else rng.randrange(header, len(data))] ^= 1 << rng.randrange(8)
    ways = {
        "truncated": data[: rng.randrange(len(data))],
        "long": data + b"x",
        "empty": b"",
        "other": other.read_bytes(),
    }
    file.write_bytes(ways.get(how, data))


@pytest.mark.parametrize("how", ["header", "data", "truncated", "long", "empty", "other"])
def test_a_damaged_file_changes_no_answer(
    network: Network, kept: Kept, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, rng = tmp_path / "kept", random.Random(how)
    shutil.copytree(kept.folder, folder)
    folder.chmod(0o700)
    chain = Process(folder, network).snapshots.chain(key_of(kept.asks, network), lambda end: end < len(kept.asks.ids))
    file, other = rng.sample(chain, 2)
    damage(file.path, other.path, how, rng)
    assert Process(folder, network).run(kept.asks) == (kept.expected, file.start)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert file.path.name in caplog.text
    caplog.clear()
    assert Process(folder, network).run(kept.asks) == (kept.expected, chain[-1].end)  # it was written anew
    assert not caplog.text


def test_a_file_that_cannot_be_opened_is_left(
    network: Network, kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(file: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(file))

    process, before = Process(kept.folder, network, 1), sorted(kept.folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("mlx_delta.engine.snapshots.read_header", too_many)
        assert process.run(kept.asks) == (kept.expected, 0)
    assert sorted(kept.folder.iterdir()) == before
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {"a snapshot is not read"}


def test_other_code_is_another_model(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_identity(network, TURNS)
    package = shutil.copytree(identity._PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    monkeypatch.setattr(identity, "_PACKAGE", package)
    (package / "model" / ".#layers.py").symlink_to("of.an@editor")
    assert model_identity(network, TURNS) == before
    with (package / "model" / "layers.py").open("a") as file:
        file.write("#")
    identity._code_hash.cache_clear()
    assert model_identity(network, TURNS) != before


def test_of_another_model_nothing_is_read(network: Network, kept: Kept, tmp_path: Path) -> None:
    """Nor where a file says that it is of this one."""
    other = replace(network, norm=network.norm * (1 + 1e-6 * (mx.arange(network.norm.size) == 5)))
    mx.eval(other.norm)
    assert Process(kept.folder, other).snapshots.chain(key_of(kept.asks, other)) == []
    for turned in (replace(network, kv_bits=8), replace(network, dtype=mx.float32)):
        assert model_identity(turned, TURNS) != model_identity(network, TURNS)
    assert model_identity(network, NO_TURNS) != model_identity(network, TURNS)
    process = Process(tmp_path, other)
    for file in kept.folder.iterdir():
        name = process.snapshots._model[:16] + file.name[16:]
        shutil.copy(file, tmp_path / name)
    assert process.run(kept.asks) == (kept.asks.alone(other, TURNS), 0)


def test_limit(network: Network, kept: Kept, tmp_path: Path) -> None:
    """What was used least recently goes first, and no beginning before what needs it."""
    size = sum(file.stat().st_size for file in kept.folder.iterdir())
    for first in range(4):
        process = Process(tmp_path, network, 2 * size)
        (tmp_path / ".x.safetensors.partial-1").touch()
        os.utime(tmp_path / ".x.safetensors.partial-1", (0, 0))
        asks = work(first, *SYSTEM, *QUESTION)
        process.run(asks)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * size
        assert not list(tmp_path.glob(".*"))
        assert Process(tmp_path, network).engine.prefix.known(asks.ids, Cuts(asks.ids, TURNS)) == 0
        assert Process(tmp_path, network).run(asks)[1] >= len(SYSTEM)
    little = tmp_path / "little"
    Process(little, network, 1000).run(kept.asks)
    assert not list(little.iterdir())


def test_room_is_not_made_of_what_a_snapshot_needs(tmp_path: Path) -> None:
    """Nor is one written that does not fit beside what it needs."""
    snapshots = Snapshots(tmp_path, 32 * "ab", None, least=1)
    for first, end in ((0, 5), (0, 10), (100, 5), (200, 5)):
        keep(snapshots, first, end)
    snapshots.limit = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert [file.end for file in snapshots.chain(keep(snapshots, 0, 15))] == [5, 10, 15]
    snapshots.limit //= 2
    assert [file.end for file in snapshots.chain(keep(snapshots, 0, 20))] == [5, 10, 15]


def test_nothing_of_what_is_forgotten_is_left(tmp_path: Path) -> None:
    """Nor what nobody could go on from."""
    snapshots = Snapshots(tmp_path, 32 * "ab", None, least=1)
    for end in (5, 10, 15):
        key = keep(snapshots, 0, end)
    begin, middle, _ = snapshots.chain(key)
    middle.path.unlink()
    snapshots.forget(key, 5)
    assert list(tmp_path.iterdir()) == [begin.path]


def keep(snapshots: Snapshots, first: int, end: int) -> bytes:
    """Zeros of so many ids from ``first`` on; their key."""
    arrays = [mx.zeros((1, 2, end, 64)), mx.zeros((1, 2, end, 64)), mx.zeros((1, 3, 8)), mx.zeros((1, 2, 4, 4))]
    mx.eval(arrays)
    key = np.arange(first, first + end).tobytes()
    snapshots.keep(key, [(0, [KeyValues(*arrays[:2])])], [DeltaState(*arrays[2:])], None)
    snapshots.close()
    return key


def test_no_more_is_read_than_memory_may_keep(network: Network, kept: Kept) -> None:
    """Of more, the last would push out all before it, and the next prompt would read it again."""
    process = Process(kept.folder, network)
    *_, before, last = process.snapshots.chain(key_of(kept.asks, network), lambda end: end < len(kept.asks.ids))
    process.engine.prefix.limit = process.engine.prefix._need(last.end - 1)
    process.engine.prefix.fetch(kept.asks.ids, kept.asks.ids)
    assert process.engine.known(kept.asks.ids, kept.asks.ids) == before.end
    whole = Process(kept.folder, network)
    whole.engine.prefix.fetch(kept.asks.ids, kept.asks.ids)
    assert whole.engine.prefix.nbytes == whole.engine.prefix._need(last.end)


def test_what_cannot_be_written(
    network: Network, kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: one line; Ctrl-C at the end: what waits; a prompt with a picture; a folder that is gone. But who
    shares the folder may remove what is half written, and a process may have less priority than the writing."""

    def full(stream: IO[bytes], *_: object) -> None:
        stream.write(b"x" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(mx, "save_safetensors", full)
        assert Process(tmp_path, network).run(kept.asks) == (kept.expected, 0)
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())

    other = tmp_path / "other"
    save, asked = mx.save_safetensors, list[int]()

    def removed(stream: IO[bytes], *_: object) -> None:
        monkeypatch.setattr(mx, "save_safetensors", save)
        Path(stream.name).unlink()

    def refused(which: int, who: int, priority: int) -> None:
        asked.append(priority)
        raise PermissionError

    monkeypatch.setattr(mx, "save_safetensors", removed)
    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    monkeypatch.setattr(os, "setpriority", refused)
    assert Process(other, network).run(kept.asks) == (kept.expected, 0)
    assert list(other.iterdir())
    assert set(asked) == ({15} if sys.platform == "linux" else set())
    assert len(caplog.records) == 1
    shutil.rmtree(other)

    began, go_on = threading.Event(), threading.Event()
    process = Process(tmp_path, network)
    write, wait = process.snapshots._write, process.snapshots._wait

    def slow(job: Any) -> None:
        began.set()
        go_on.wait(60)
        write(job)

    def interrupted() -> None:
        monkeypatch.setattr(process.snapshots, "_wait", wait)
        began.wait(60)
        go_on.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(process.snapshots, "_write", slow)
    monkeypatch.setattr(process.snapshots, "_wait", interrupted)
    process.run(kept.asks)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1

    shown = work(*SYSTEM, -7, *QUESTION)
    process.snapshots.keep(key_of(shown, network), [], [], None)
    assert not process.snapshots._jobs

    shutil.rmtree(tmp_path)
    assert process.run(kept.asks)[0] == kept.expected


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_directory("relative") == tmp_path / "relative"
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, message in (
        ("file", "expected a directory, found"),
        ("open", r"expected .*\(chmod 700\), found .*: 777"),
    ):
        with pytest.raises(ArgumentError, match=f"prefix_cache_dir: {message}"):
            load_model("nowhere", prefix_cache_dir=tmp_path / name)
    with pytest.raises(ArgumentError, match="prefix_cache_dir: expected a model that one process runs"):
        load_model("nowhere", prefix_cache_dir=tmp_path / "new", ranks=cast(Ranks, object()))
    with pytest.raises(ArgumentError, match="prefix_cache_dir_bytes: expected at least 0, found -1"):
        load_model("nowhere", prefix_cache_dir=tmp_path / "new", prefix_cache_dir_bytes=-1)
    with pytest.raises(ArgumentError, match="prefix_cache_dir_bytes: expected with prefix_cache_dir, found without"):
        load_model("nowhere", prefix_cache_dir_bytes=5)


def key_of(asks: Work, network: Network) -> bytes:
    return PrefixCache(network, 0, TURNS)._key(asks.ids, Cuts(asks.ids, TURNS))
