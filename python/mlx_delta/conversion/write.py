"""Output that appears whole or not at all: a safetensors file written as a stream, in a new directory; one file."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_delta.checkpoint.source import SAFETENSORS_DTYPES
from mlx_delta.errors import ConvertError, OutputError, OutputExistsError

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def file_size(entries: Sequence[Entry]) -> int:
    """The bytes that ``write_safetensors`` writes: header and data."""
    return len(_header(entries)) + sum(entry.nbytes for entry in entries)


def write_safetensors(file: Path, entries: Sequence[Entry], arrays: Iterable[tuple[str, mx.array]]) -> None:
    """Write ``arrays`` as they come; they must come as ``entries`` announces them.

    The header is known from ``entries``, so only the array at hand is in memory. The file is on disk on return.
    Raises: ConvertError naming a tensor that is not the announced one; OSError naming the file.
    """
    with _named_errors(file), file.open("xb") as stream:
        stream.write(_header(entries))
        expected = iter(entries)
        for name, array in arrays:
            entry = next(expected, None)
            if entry != Entry(name, tuple(array.shape), array.dtype):
                raise ConvertError(f"{file}: expected {entry}, found {name} {array.shape} {array.dtype}")
            stream.write(_raw_bytes(array))
        if (left := next(expected, None)) is not None:
            raise ConvertError(f"{file}: expected {left}, found the end")
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """A full disk is reported without a name: the file written to is put in."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def write_file(file: Path, data: bytes) -> None:
    """Write a whole small file; it is on disk on return."""
    with _named_errors(file), file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, so that a mapped file is aligned
    return struct.pack("<Q", len(text)) + text


def _raw_bytes(array: mx.array) -> memoryview:
    """The array's bytes, row-major and little-endian, without a copy. (bfloat16 has no buffer format of its own.)"""
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    return memoryview(flat)  # type: ignore[arg-type]  # mlx's stubs do not declare the buffer it has


@contextmanager
def atomic_file(file: Path, force: bool = False) -> Iterator[Path]:
    """A hidden path beside ``file`` to write to, renamed to ``file`` when the block ends well.

    Raises: OutputExistsError without ``force``; OutputError when ``file`` cannot be one; OSError naming the file.
    """
    check_output_file(file, force)
    partial = _sibling(file, "partial")
    try:
        with _named_errors(file):
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
    _check_output(out, source.resolve(), force)
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


def _check_output(out: Path, source: Path, force: bool) -> None:
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
