"""Output that appears whole or not at all: a directory, or one file."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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

    Raises: OutputExistsError without ``force``; OutputError when ``file`` cannot be one; OSError naming the file.
    """
    check_output_file(file, force)
    partial = _sibling(file, "partial")
    try:
        with named_errors(file):
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(file)
            _sync_directory(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_output_file(file: Path, force: bool) -> None:
    """Before a long run: ``file`` can be created. Raises: OutputError."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: expected a directory {file.parent}, found none")
    if file.is_dir():
        raise OutputError(f"{file}: expected a file to write, found a directory")
    if file.exists() and not force:
        raise OutputExistsError(f"{file}: expected a new file, found it there already")


@contextmanager
def atomic_directory(out: Path, source: Path, force: bool) -> Iterator[Path]:
    """A hidden directory beside ``out`` to write into, renamed to ``out`` when the block ends well.

    After an exception (or Ctrl-C) it is gone; after a kill it stays under its hidden name, ``.NAME.partial-PID``, until
    the next conversion to ``out``. An existing model directory is replaced with ``force``, at the very end.

    Raises: OutputError when ``out`` exists (or, with ``force``, is no model directory), or is tied up with ``source``.
    """
    out = out.resolve()
    _clean_up(out)
    check_output_directory(out, source, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(out, "partial")
    partial.mkdir()
    try:
        yield partial
        _sync_directory(partial)
        _publish(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_directory(out.parent)


def check_output_directory(out: Path, source: Path, force: bool) -> None:
    """Before a long run: ``out`` can be made of ``source``. Raises: as ``atomic_directory``."""
    out, source = out.resolve(), source.resolve()
    if out == source or out in source.parents or source in out.parents:
        raise OutputError(f"{out}: expected an output apart from the input, found the input {source}")
    if out.exists() and not force:
        raise OutputExistsError(f"{out}: expected a new directory, found it there already")
    # --force must not delete what no conversion made: a mistyped path could be a home directory.
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: expected a model directory to replace, found something without a config.json")


def _publish(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    replaced = _sibling(out, "replaced")
    out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _sibling(out: Path, role: str) -> Path:
    return out.parent / f".{out.name}.{role}-{os.getpid()}"


def _clean_up(out: Path) -> None:
    """Undo what killed conversions to ``out`` left: half-written directories, and an original half way to its end."""
    for role in ("replaced", "partial"):
        for left in out.parent.glob(f".{glob.escape(out.name)}.{role}-*"):
            pid = left.name.rpartition("-")[2]
            if not pid.isdigit() or (int(pid) != os.getpid() and _is_alive(int(pid))):
                continue
            if role == "replaced" and not out.exists():
                left.rename(out)
            else:
                shutil.rmtree(left, ignore_errors=True)


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
