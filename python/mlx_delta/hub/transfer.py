"""Large files over HTTP into the Hugging Face cache, going on where an earlier run was stopped, by whatever.

huggingface_hub starts a file over when its process was killed (since version 1.18, for file systems whose locks do not
hold), and removes what it has when it is interrupted. Here a half file stays, under a lock; that it is right in the end
does not rest on the lock: its SHA-256 is checked.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from mlx_delta.errors import HubError
from mlx_delta.hub.cache import storage
from mlx_delta.hub.names import HubName
from mlx_delta.progress import Show

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_CONNECTIONS = 8


class _StoppedError(Exception):
    """Another file failed, or Ctrl-C came."""


def fetch(name: HubName, commit: str, files: Sequence[RepoSibling], progress: Show) -> None:
    """Those of ``files`` that are kept as LFS, and not in the cache yet, into its blobs.

    Raises: HubError for a disk that is too small, or a file that is not what the Hub says; huggingface_hub's errors.
    """
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE

    blobs = storage(name) / "blobs"
    wanted = [
        _File(name, commit, each.rfilename, each.lfs.size, blobs / each.lfs.sha256)
        for each in files
        if each.lfs is not None and each.lfs.size <= MAX_HTTP_DOWNLOAD_SIZE
    ]
    wanted = [each for each in wanted if not each.blob.exists()]
    if not wanted:
        return
    blobs.mkdir(parents=True, exist_ok=True)
    _check_space(name, blobs, sum(each.size - each.present for each in wanted))
    transfer = _Transfer(sum(each.size for each in wanted), progress)
    _in_threads([each.fetcher(transfer) for each in wanted], transfer.stop)


class _Transfer:
    """What all files of a run share: how far they are, and whether to stop."""

    def __init__(self, total: int, progress: Show) -> None:
        self.stop = Event()
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = Lock()

    def add(self, nbytes: int) -> None:
        """Raises: _StoppedError in the thread that reports."""
        if self.stop.is_set():
            raise _StoppedError
        with self._lock:
            self._done += nbytes
            self._progress(self._done, self._total)


class _File:
    """One file: blob is where it belongs, partial what there is of it."""

    def __init__(self, name: HubName, commit: str, file: str, size: int, blob: Path) -> None:
        self._name = name
        self._commit = commit
        self._file = file
        self.size = size
        self.blob = blob
        self._partial = blob.with_name(f"{blob.name}.incomplete")

    @property
    def present(self) -> int:
        """Bytes of it that an earlier run left."""
        return self._partial.stat().st_size if self._partial.exists() else 0

    def fetcher(self, transfer: _Transfer) -> Callable[[], None]:
        return lambda: self._fetch(transfer)

    def _fetch(self, transfer: _Transfer) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        lock = self.blob.parents[2] / ".locks" / self.blob.parents[1].name / f"{self.blob.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the one that huggingface_hub takes for this file
            if self.blob.exists():
                return
            with self._partial.open("ab") as stream:
                if stream.tell() > self.size:
                    stream.truncate(0)
                transfer.add(stream.tell())
                http_get(
                    hf_hub_url(self._name.repo, self._file, revision=self._commit),
                    stream,
                    resume_size=stream.tell(),
                    headers=build_hf_headers(library_name="mlx-delta"),
                    expected_size=self.size,
                    displayed_filename=self._file,
                    _tqdm_bar=_Counter(transfer),
                )
            self._check()
            self._partial.replace(self.blob)

    def _check(self) -> None:
        digest = hashlib.sha256()
        with self._partial.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        found = digest.hexdigest()
        if found != self.blob.name:
            self._partial.unlink()
            raise HubError(
                f"{self._name}: {self._file}: expected SHA-256 {self.blob.name}, found {found}: what arrived is "
                "damaged and was removed: run it again"
            )


class _Counter:
    """What ``http_get`` takes for a progress bar."""

    def __init__(self, transfer: _Transfer) -> None:
        self._transfer = transfer

    def update(self, nbytes: int) -> None:
        self._transfer.add(nbytes)


def _check_space(name: HubName, blobs: Path, nbytes: int) -> None:
    """Before the first byte, for a full disk is better found now than in an hour."""
    free = shutil.disk_usage(blobs).free
    if free < nbytes:
        raise HubError(
            f"{name}: expected {nbytes / 1e9:.1f} GB free for {blobs.parent}, found {free / 1e9:.1f}: free some, or "
            "set HF_HOME to a directory on another disk"
        )


def _in_threads(tasks: Sequence[Callable[[], None]], stop: Event) -> None:
    """Run all, a few at a time; the first error stops the others.

    The threads are daemons: after Ctrl-C nobody waits for a server that is silent.
    """
    waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except Empty:
                return
            try:
                task()
            except BaseException as error:  # the caller raises it
                ended.put(error)
            else:
                ended.put(None)

    for _ in range(min(_CONNECTIONS, len(tasks))):
        Thread(target=work, daemon=True).start()
    try:
        for _ in tasks:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stop.set()
