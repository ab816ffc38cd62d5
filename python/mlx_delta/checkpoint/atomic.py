"""Output that appears whole or not at all: a directory, or one file."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_delta.errors import OutputError, OutputExistsError


@contextmanager
def named_errors(file: Path) -> Iterator[None]:
    """A full disk is reported without a name: the file written to is put in."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def write_file(file: Path, data: bytes) -> None:
    """Write a whole small file; it is on disk on return."""
    with named_errors(file), file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def atomic_file(file: Path, force: bool = False) -> Iterator[Path]:
    """A hidden path beside ``file`` to write to, renamed to ``file`` when the block ends well.

    Any number of threads may write one at once. What killed processes left of it goes first.
    Raises: OutputExistsError without ``force``, also when ``file`` came to be in the meantime; OutputError when
    ``file`` cannot be one; OSError naming the file.
    """
    check_output_file(file, force)
    for left in file.parent.glob(f".{glob.escape(file.name)}.partial-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            left.unlink(missing_ok=True)
    partial = file.parent / f".{file.name}.partial-{secrets.token_hex(4)}-{os.getpid()}"
    try:
        with named_errors(file):
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            if force or not _linked(partial, file):
                check_output_file(file, force)
                partial.replace(file)
            _sync_directory(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def _linked(partial: Path, file: Path) -> bool:
    """Give what is at ``partial`` the name ``file`` too, which nobody must have; false where disks have no links."""
    try:
        file.hardlink_to(partial)
    except FileExistsError:
        raise OutputExistsError(f"{file}: expected a new file, found one that came to be meanwhile") from None
    except OSError:
        return False
    return True


def check_output_file(file: Path, force: bool) -> None:
    """Before a long run: ``file`` can be created. Raises: OutputError."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: expected a directory {file.parent}, found none")
    if file.is_dir():
        raise OutputError(f"{file}: expected a file to write, found a directory")
    if file.exists() and not force:
        raise OutputExistsError(f"{file}: expected a new file, found it there already")
    _check_writable(file)


@contextmanager
def atomic_directory(out: Path, source: Path, force: bool) -> Iterator[Path]:
    """A hidden directory beside ``out`` to write into, renamed to ``out`` when the block ends well.

    After an exception (or Ctrl-C) it is gone; after a kill it stays under its hidden name, ``.NAME.partial``, and the
    next conversion to ``out`` begins with it, emptied. An existing model directory is replaced with ``force``, at the
    very end. Two processes never write to one output: the second is told at once.

    Raises: OutputError when ``out`` is tied up with ``source``, is being written, cannot be, or, with ``force``, is no
    model directory; OutputExistsError when it is there without ``force``, also when it came to be in the meantime.
    """
    out = out.resolve()
    check_output_directory(out, source, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out)
    lock: int | None = None
    try:
        lock = _take(partial, out)
        _restore(out)
        _check_replaceable(out, force)
        for left in partial.iterdir():
            left.unlink() if left.is_symlink() or not left.is_dir() else shutil.rmtree(left)
        yield partial
        _sync_directory(partial)
        _publish(partial, out, force)
    except BaseException as error:
        if lock is not None:
            shutil.rmtree(partial, ignore_errors=True)
        elif not isinstance(error, Exception):  # a signal, as it was made; another's has something in it
            with suppress(OSError):
                partial.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _sync_directory(out.parent)


def check_output_directory(out: Path, source: Path, force: bool) -> None:
    """Before a long run: ``out`` can be made of ``source``. Raises: as ``atomic_directory``."""
    out, source = out.resolve(), source.resolve()
    if out == source or out in source.parents or source in out.parents:
        raise OutputError(f"{out}: expected an output apart from the input, found the input {source}")
    _check_replaceable(out, force)
    _check_writable(out)
    if _partial(out).is_dir():
        os.close(_take(_partial(out), out))


def _check_writable(out: Path) -> None:
    """What is there above ``out`` is a directory that lets names be created. Raises: OutputError."""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise OutputError(f"{out}: expected a directory to create it in, found the file {above}")
    if not os.access(above, os.W_OK | os.X_OK):  # false on a disk that is mounted read-only, for root too
        raise OutputError(f"{out}: expected a directory that can be written to, found {above}, which cannot")


def _check_replaceable(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise OutputExistsError(f"{out}: expected a new directory, found it there already")
    # --force must not delete what no conversion made: a mistyped path could be a home directory.
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: expected a model directory to replace, found something without a config.json")


def _take(partial: Path, out: Path) -> int:
    """The directory ``partial``, made or found, as this process's alone until the descriptor is closed.

    Its lock is the kernel's, so that nothing is left of it when a process is killed.
    Raises: OutputError when another process has it.
    """
    while True:
        partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # renamed, or removed, by its owner just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(f"{out}: expected no other conversion to it, found one at work") from None
        except OSError:  # a disk, far away, without locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        os.close(descriptor)


def _publish(partial: Path, out: Path, force: bool) -> None:
    replaced = _replaced(out)
    if force and out.exists():
        out.rename(replaced)
    try:
        partial.rename(out)  # fails where a directory with files came to be
    except BaseException as error:
        if replaced.exists():
            replaced.rename(out)
        if isinstance(error, OSError) and out.exists():
            raise OutputExistsError(f"{out}: expected a new directory, found one that came to be meanwhile") from None
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _restore(out: Path) -> None:
    """Put back an original that a killed process had moved away; of one that it was removing, the rest goes."""
    replaced = _replaced(out)
    if replaced.exists() and not out.exists():
        replaced.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def _replaced(out: Path) -> Path:
    return out.parent / f".{out.name}.replaced"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_directory(directory: Path) -> None:
    """Names, like data, reach the disk only when asked to."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
