"""What is kept of prompts and answers, in files: for the next process, and for others that share the folder.

A file has the keys and values of the tokens since the snapshot before it, and the states after them, so files make
chains from the beginning of a text, and what texts have in common is stored once. Its name says of which model, from
where to where, and which ids::

    MODEL-START-END-IDS.safetensors

MODEL is a hash of all that the bits depend on (``identity.model_identity``), IDS one of all ids up to END with the way
in which each was computed. What is inside has a hash of its contents and of all of that: a file that lacks it is
removed with one line of warning, and what it had is computed. The hash tells damage, not malice: the folder must be
closed to others.

Files are written by a thread that goes when there is nothing to write, and read in the thread that submits a sequence:
nobody who decodes waits for either.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_delta.checkpoint.atomic import atomic_file
from mlx_delta.checkpoint.safetensors import raw_bytes, read_header
from mlx_delta.errors import ArgumentError, CheckpointError
from mlx_delta.model.cache import DeltaState, KeyValues
from mlx_delta.paths import expanded
from mlx_delta.streams import OneStream

ID = 8  # bytes of an id in a key, int64; below 0: of a picture
LEAST = 256  # tokens since the snapshot before: what is computed about as fast as it is read is not worth a file
LIMIT = 16 << 30  # bytes of a folder, unless the user says
_MOST_WAITING = 16  # snapshots to be written, whose arrays are held until then; of more that come nothing is written
_LEFT = 3600  # seconds after which what a killed process was writing goes
_NAME = re.compile(r"([0-9a-f]{16})-(\d+)-(\d+)-([0-9a-f]{32})\.safetensors")
_PARTS = ("rows", "states")  # of a file, read and checked each by itself
_log = logging.getLogger("mlx_delta.engine.snapshots")


@dataclass(frozen=True)
class File:
    """Keys and values of the tokens from start to end, and the states after them; ids: a hash of all up to the end."""

    path: Path
    start: int
    end: int
    ids: str


@dataclass(frozen=True)
class Content:
    """rows: keys and values of each attention layer; states: of each other layer. Empty where they were not asked for.
    hidden: see ``PrefixCache.keep``."""

    rows: list[KeyValues]
    states: list[DeltaState]
    hidden: mx.array | None = None

    def arrays(self) -> dict[str, mx.array]:
        """By their names in a file."""
        rows = {f"rows.{i}.{name}": a for i, each in enumerate(self.rows) for name, a in vars(each).items()}
        states = {f"states.{i}.{name}": a for i, each in enumerate(self.states) for name, a in vars(each).items()}
        named = {**rows, **states, "states.hidden": self.hidden}
        return {name: a for name, a in named.items() if isinstance(a, mx.array)}

    @classmethod
    def of(cls, arrays: Mapping[str, mx.array], kept: Sequence[int], kv_bits: int | None) -> Content:
        """kept: ``DeltaState.kept`` of each state."""
        layers = sum(name.endswith(".keys") for name in arrays)
        rows = [KeyValues(arrays[f"rows.{i}.keys"], arrays[f"rows.{i}.values"], kv_bits) for i in range(layers)]
        states = []
        for i in range(sum(name.endswith(".delta") for name in arrays)):
            conv, delta, pending = (arrays.get(f"states.{i}.{name}") for name in ("conv", "delta", "pending"))
            states.append(DeltaState(conv, delta, pending=pending, kept=kept[i]))
        return cls(rows, states, arrays.get("states.hidden"))


@dataclass(frozen=True, eq=False)
class _Job:
    """key: all ids. stretches: their keys and values, one after the other, each with where it begins."""

    key: bytes
    stretches: Sequence[tuple[int, list[KeyValues]]]
    states: list[DeltaState]
    hidden: mx.array | None


class Snapshots:
    """Those of one model in ``directory``. model: its ``model_identity``; kv_bits: of its keys and values. limit: bytes
    of all snapshots there, of other models too; what was used least recently goes first. least: tokens since the one
    before that one is written for."""

    def __init__(
        self, directory: str | Path, model: str, kv_bits: int | None, limit: int | None = None, least: int = LEAST
    ) -> None:
        self.directory = checked_directory(directory)
        self.limit = LIMIT if limit is None else limit
        self._model = model
        self._kv_bits = kv_bits
        self._least = least
        self._bad: set[str] = set()  # names of files that are gone, or should be
        self.stream = OneStream()  # for what files are read into
        self._writing = OneStream()
        self._lock = threading.Lock()  # guards what follows
        self._jobs: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._broken = False  # nothing can be written: a full disk
        atexit.register(self.close)

    def chain(self, key: bytes, goes_on: Callable[[int], bool] = lambda end: True) -> list[File]:
        """The files, one after the other from the beginning, that get furthest with the ids of ``key``, to where
        ``goes_on`` is true."""
        chains: dict[int, list[File]] = {0: []}
        for file in self._beginnings(key):
            if file.start in chains and file.path.name not in self._bad:
                chains[file.end] = [*chains[file.start], file]
        return chains[max((end for end in chains if end and goes_on(end)), default=0)]

    def _beginnings(self, key: bytes) -> Iterator[File]:
        """All files of the first ids of ``key``, in the order of their ends."""
        ends: dict[int, list[File]] = {}
        for path in _paths(self.directory):
            found = _NAME.fullmatch(path.name)
            if found and found[1] == self._model[:16] and int(found[2]) < int(found[3]):
                file = File(path, int(found[2]), int(found[3]), found[4])
                ends.setdefault(file.end, []).append(file)
        digest, at = hashlib.sha256(), 0
        for end in sorted(end for end in ends if ID * end <= len(key)):
            digest.update(memoryview(key)[ID * at : ID * end])
            at, ids = end, digest.hexdigest()[:32]
            yield from (file for file in ends[end] if file.ids == ids)

    def read(self, chain: Sequence[File], known: Container[int] = ()) -> list[Content] | None:
        """What each file has: keys and values, but where its end is ``known``, and the states at the end of all. None:
        one is gone, or was damaged and is gone now.
        """
        found = []
        for file in chain:
            try:
                found.append(self._read(file, (file.end not in known, file is chain[-1])))
            except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
                self._bad.add(file.path.name)
                reason = " ".join(str(error).split())
                if isinstance(error, OSError) and file.path.exists():  # whole, maybe: too many files are open
                    _log.warning("a snapshot is not read: %s", reason)
                elif file.path.exists():  # else another process has made room
                    _log.warning("a damaged snapshot is removed: %s", reason)
                    with suppress(OSError):
                        file.path.unlink()
                return None
        _used(chain)
        return found

    def _read(self, file: File, wanted: tuple[bool, bool]) -> Content:
        read_header(file.path)  # first, for MLX checks less
        with self.stream():
            read: Any = mx.load(str(file.path), format="safetensors", return_metadata=True)
            loaded, about = read
            parts = {part: _of(part, loaded) for part, each in zip(_PARTS, wanted, strict=True) if each}
            contents = {part: _contents(arrays) for part, arrays in parts.items()}
        facts, arrays = json.loads(about["snapshot"]), dict[str, mx.array]()
        for part, digest in zip(_PARTS, facts["digests"], strict=True):
            if part in parts:
                if digest != self._digest(file, part, contents[part], facts["kept"]):
                    raise CheckpointError(f"{file.path}: expected what was written there, found other bytes")
                arrays |= parts[part]
        return Content.of(arrays, facts["kept"], self._kv_bits)

    def keep(
        self,
        key: bytes,
        stretches: Sequence[tuple[int, list[KeyValues]]],
        states: list[DeltaState],
        hidden: mx.array | None,
    ) -> None:
        """Write a snapshot after the ids of ``key``, some time, if it is worth a file. stretches: of all keys and
        values before it, each with where it begins. Nobody may change one of the arrays, which have been evaluated."""
        if any(byte & 0x80 for byte in key[ID - 1 :: ID]):  # with pictures, whose tower is not in the model's hash
            return
        with self._lock:
            if self._broken or len(self._jobs) >= _MOST_WAITING:
                return
            self._jobs.append(_Job(key, stretches, states, hidden))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
                self._thread.start()

    def forget(self, key: bytes, shared: int) -> None:
        """Remove the files of ``key``, but for those up to ``shared`` ids, with which others begin too. All of them:
        two processes may have made chains of their own, and what comes after a file that is gone is still there."""
        with self._lock:
            ours = [job for job in self._jobs if key.startswith(job.key) and len(job.key) > ID * shared]
            self._jobs = deque(job for job in self._jobs if job not in ours)
        self._wait()
        for file in self._beginnings(key):
            if file.end > shared:
                with suppress(OSError):
                    file.path.unlink()

    def close(self) -> None:
        """Wait until all is written. Ctrl-C gives up what has not begun, and a second one the file under way."""
        try:
            self._wait()
        except KeyboardInterrupt:
            with self._lock:
                self._jobs.clear()
            self._wait()

    def _wait(self) -> None:
        if (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # where it is the thread's own
            me = threading.get_native_id()
            with suppress(OSError):  # to raise one of less, of a process that gives way itself, is not allowed
                os.setpriority(os.PRIO_PROCESS, me, max(10, os.getpriority(os.PRIO_PROCESS, me)))
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            try:
                with self._writing():
                    self._write(job)
            except FileNotFoundError:  # of a chain, or half written: who shares the folder from elsewhere removed it
                continue
            except Exception as error:
                _log.warning("no more snapshots are written: %s", " ".join(str(error).split()))
                with self._lock:
                    self._broken = True
                    self._jobs.clear()

    def _write(self, job: _Job) -> None:
        chain = self.chain(job.key)
        start, end = chain[-1].end if chain else 0, len(job.key) // ID
        if end - start < self._least:
            return
        ids = hashlib.sha256(job.key).hexdigest()[:32]
        file = File(self.directory / f"{self._model[:16]}-{start}-{end}-{ids}.safetensors", start, end, ids)
        arrays = Content(_joined(job.stretches, start), job.states, job.hidden).arrays()
        size = sum(a.nbytes for a in arrays.values())
        if size + sum(each.path.stat().st_size for each in chain) > self.limit:
            return
        _used(chain)  # before room is made: without them it would be of no use
        kept = [state.kept for state in job.states]
        digests = [self._digest(file, part, _contents(_of(part, arrays)), kept) for part in _PARTS]
        _make_room(self.directory, self.limit - size)
        with atomic_file(file.path, force=True) as partial, open(partial, "xb", opener=_private) as stream:
            mx.save_safetensors(stream, arrays, {"snapshot": json.dumps({"digests": digests, "kept": kept})})
        self._bad.discard(file.path.name)
        _used([*chain, file])

    def _digest(self, file: File, part: str, contents: Sequence[bytes | memoryview], kept: Sequence[int]) -> str:
        """Of a part's contents, and of whose they are."""
        found = hashlib.sha256(repr((self._model, file.start, file.end, file.ids, part, kept)).encode())
        for each in contents:
            found.update(each)
        return found.hexdigest()


def checked_directory(directory: str | Path) -> Path:
    """A folder for snapshots, made if it is not there, for its owner alone. Raises: ArgumentError."""
    path = expanded(directory, "prefix_cache_dir").absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"prefix_cache_dir: expected a directory, found {path}: {error.strerror}") from error
    mode = path.stat().st_mode & 0o777
    if mode & 0o022 or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ArgumentError(
            f"prefix_cache_dir: expected a directory that only you may write to (chmod 700), found {path}: {mode:o}"
        )
    return path


def _joined(stretches: Sequence[tuple[int, list[KeyValues]]], start: int) -> list[KeyValues]:
    """Keys and values of each attention layer from ``start`` on."""
    found = []
    for of_layer in zip(*(layers for _, layers in stretches), strict=True):
        parts = []
        for (begin, _), layer in zip(stretches, of_layer, strict=True):
            count = layer.arrays()[0].shape[2]
            if begin + count > start:
                parts.append(layer if begin >= start else layer.stretch(start - begin, count))
        keys, values = (mx.concatenate(list(a), axis=2) for a in zip(*(p.arrays() for p in parts), strict=True))
        found.append(KeyValues(keys, values))
    return found


def _of(part: str, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    return {name: a for name, a in arrays.items() if name.startswith(f"{part}.")}


def _contents(arrays: Mapping[str, mx.array]) -> list[bytes | memoryview]:
    """Of each array, evaluated now: what it is, and its bytes."""
    described = [(repr((name, a.shape, str(a.dtype))).encode(), raw_bytes(a)) for name, a in sorted(arrays.items())]
    return [each for pair in described for each in pair]


def _paths(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:  # it is gone, which is no reason not to answer
        return []


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _used(chain: Sequence[File]) -> None:
    """Now, the beginning last: what others need goes after what needs it."""
    now = time.time_ns()
    for age, file in enumerate(chain):
        with suppress(OSError):
            os.utime(file.path, ns=(now - age, now - age))


def _make_room(directory: Path, limit: int) -> None:
    """Remove what was used least recently until at most ``limit`` bytes are left, and what killed processes left."""
    files, total = [], 0
    for path in _paths(directory):
        with suppress(OSError):
            stat = path.stat()
            if _NAME.fullmatch(path.name):
                files.append((stat.st_mtime_ns, path, stat.st_size))
                total += stat.st_size
            elif ".safetensors.partial-" in path.name and time.time() - stat.st_mtime > _LEFT:
                path.unlink()
    for _, path, size in sorted(files):
        if total <= limit:
            return
        total -= size
        path.unlink(missing_ok=True)
