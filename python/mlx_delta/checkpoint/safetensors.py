"""safetensors files: read one tensor at a time, and written as a stream."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_delta.checkpoint.atomic import named_errors
from mlx_delta.checkpoint.source import HEAD_FILES, INDEX, TensorInfo, files_beside
from mlx_delta.checkpoint.tensors import Ranges
from mlx_delta.errors import CheckpointError, ConvertError
from mlx_delta.json_files import parse_json, read_json

DTYPES: Mapping[str, mx.Dtype] = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
}
_READ = {**DTYPES, "F8_E4M3": mx.uint8}  # MLX has no such dtype, and reads its bits: see checkpoint.scaled
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_PAGE = 4096  # bytes


class _Unread(threading.local):
    """Arrays of files, of each thread its own: MLX reads one in the thread alone that opened the file."""

    def __init__(self) -> None:
        self.files: dict[Path, dict[str, mx.array]] = {}


class SafetensorsSource:
    """A directory with one or more safetensors files.

    The index, where there is one, says which file holds which tensor; otherwise every ``model*.safetensors`` counts.
    An MTP head may lie beside them, in ``mtp/*.safetensors``, under names with "mtp." or without; one that the model's
    own files have goes before it.

    Raises: CheckpointError naming the file (and tensor) for a missing, truncated or inconsistent one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _indexed(path / INDEX) if (path / INDEX).is_file() else _unindexed(path)
        self._bare: set[str] = set()  # names that lack their "mtp." in the file
        if not any(name.startswith("mtp.") for name in self.tensors):
            self._add_head()
        self._unread = _Unread()

    def load(self, name: str) -> mx.array:
        """The tensor ``name``, lazily: its bytes are read at evaluation, and freed with the returned array.

        Raises: CheckpointError when the checkpoint has no such tensor.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: expected a tensor {name}, found nothing")
        file = self.tensors[name].file
        # An array handed out is forgotten here: evaluated, it would otherwise stay in memory as long as the source.
        stored = name.removeprefix("mtp.") if name in self._bare else name
        unread = self._unread.files
        if stored not in unread.get(file, {}):
            unread[file] = _load_file(file)
        return unread[file].pop(stored)

    def load_part(self, name: str, axis: int, ranges: Ranges) -> mx.array:
        """The ranges along an axis of the tensor ``name``, one behind the other; no other byte of it is read.

        Raises: CheckpointError when the file ends before.
        """
        info = self.tensors[name]
        assert info.offset is not None
        axis %= len(info.shape)
        inner = math.prod(info.shape[axis + 1 :]) * info.dtype.size  # bytes of one element of the axis
        blocks = math.prod(info.shape[:axis])
        count = sum(stop - start for start, stop in ranges)
        shape = (*info.shape[:axis], count, *info.shape[axis + 1 :])
        if max((stop - start for start, stop in ranges), default=0) * inner < _PAGE and blocks > 1:
            # A piece of a page: the system reads pages, and a call for each piece would take longer than that.
            end = info.offset + blocks * info.shape[axis] * inner
            if info.file.stat().st_size < end:
                raise CheckpointError(f"{info.file}: {name}: expected {end} bytes, found less")
            stored = np.memmap(info.file, np.uint8, "r", info.offset, (blocks, info.shape[axis] * inner))
            pieces = [stored[:, start * inner : stop * inner] for start, stop in ranges]
            return mx.array(np.concatenate(pieces, axis=1).reshape(-1)).view(info.dtype).reshape(shape)
        data = np.empty((blocks, count * inner), np.uint8)
        with info.file.open("rb") as stream:
            advise = getattr(os, "posix_fadvise", None)  # not on macOS
            if advise:  # nothing beyond what is asked for is read ahead
                advise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for block in range(blocks):
                done = 0
                for start, stop in ranges:
                    piece = memoryview(data[block])[done : (done := done + (stop - start) * inner)]
                    where = info.offset + (block * info.shape[axis] + start) * inner
                    if advise:
                        advise(stream.fileno(), where, len(piece), os.POSIX_FADV_WILLNEED)
                    if os.preadv(stream.fileno(), [piece], where) != len(piece):
                        raise CheckpointError(
                            f"{info.file}: {name}: expected {len(piece)} bytes at {where}, found less"
                        )
        return mx.array(data.reshape(-1)).view(info.dtype).reshape(shape)

    def _add_head(self) -> None:
        for stored, info in _merged(sorted(self.path.glob(HEAD_FILES))).items():
            name = stored if stored.startswith("mtp.") else f"mtp.{stored}"
            self.tensors[name] = info
            if name != stored:
                self._bare.add(name)

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer, template and the like: file name -> content."""
        return files_beside(self.path)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, as the library's own reader finds them: what it refuses is refused.

    It maps the file, but touches its header alone. Beyond it, a name that stands twice is refused (the library takes it
    where both entries are the same), and so is a dtype that MLX does not have.
    Raises: CheckpointError naming the file, and the tensor where it is one tensor's fault.
    """
    header, begin = _json_header(file)
    try:
        with safe_open(file, framework="np") as reader:
            found = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - it is no mapping
            infos = {name: _tensor_info(file, name, each.get_shape(), each.get_dtype()) for name, each in found.items()}
    except SafetensorError as error:
        reason = " ".join((str(error).partition("deserializing header: ")[2] or str(error)).split())
        fault = _fault(file, header, begin) or f"expected a safetensors file, found {reason}"
        raise CheckpointError(f"{file}: {fault}") from error
    return {name: replace(info, offset=begin + header[name]["data_offsets"][0]) for name, info in infos.items()}


def _json_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON, and where the data begins: behind the header's length, 8 bytes little-endian, and it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little") if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{file}: expected a safetensors header, found a file of {size} bytes without one")
        return parse_json(stream.read(length), f"{file}: header", CheckpointError), 8 + length


def _fault(file: Path, header: Mapping[str, Any], data: int) -> str | None:
    """Where the library only says that something does not fit: the tensor, or the file's size; else None."""
    ends = [0]
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                nbytes = math.prod(entry["shape"]) * _READ[entry["dtype"]].size
                if nbytes < 0:
                    return None
                if end - begin != nbytes:
                    what = f"{entry['dtype']} {entry['shape']}"
                    return f"{name}: expected {nbytes} bytes for {what}, found offsets {begin} to {end}"
                ends.append(end)
        expected = data + max(ends)
        size = file.stat().st_size
    except (TypeError, KeyError, ValueError):
        return None
    state = "truncated" if size < expected else "too long"
    return None if size == expected else f"{state}: expected {expected} bytes by its header, found {size}"


def _tensor_info(file: Path, name: str, shape: Sequence[int], code: str) -> TensorInfo:
    if code not in _READ:
        known = ", ".join(_READ)
        raise CheckpointError(f"{file}: {name}: dtype: expected one of {known}, found {code}")
    dtype = _READ[code]
    return TensorInfo(tuple(shape), dtype, math.prod(shape) * dtype.size, file)


def _indexed(index: Path) -> dict[str, TensorInfo]:
    wanted = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(shard, str) for shard in wanted.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object of names to files, found {wanted!r:.80}")
    headers: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(wanted.values())):
        file = index.parent / shard
        if Path(shard).name != shard or not file.is_file():
            raise CheckpointError(f"{index}: expected the shard {shard} beside it, found no such file")
        headers[shard] = read_header(file)
    for name, shard in wanted.items():
        if name not in headers[shard]:
            raise CheckpointError(f"{index.parent / shard}: expected the tensor {name} by {index.name}, found nothing")
    return {name: headers[shard][name] for name, shard in wanted.items()}


def _unindexed(path: Path) -> dict[str, TensorInfo]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{path}: expected model*.safetensors, found none")
    return _merged(files)


def _merged(files: Iterable[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: expected {name} once, found it in {tensors[name].file.name} too")
            tensors[name] = info
    return tensors


def _load_file(file: Path) -> dict[str, mx.array]:
    """Every array of ``file``, unread. MLX keeps the file open for as long as one of them is."""
    arrays = mx.load(str(file), format="safetensors")
    assert isinstance(arrays, dict)
    return arrays


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
    with named_errors(file), file.open("xb") as stream:
        stream.write(_header(entries))
        expected = iter(entries)
        for name, array in arrays:
            entry = next(expected, None)
            if entry != Entry(name, tuple(array.shape), array.dtype):
                raise ConvertError(f"{file}: expected {entry}, found {name} {array.shape} {array.dtype}")
            stream.write(raw_bytes(array))
        if (left := next(expected, None)) is not None:
            raise ConvertError(f"{file}: expected {left}, found the end")
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


def raw_bytes(array: mx.array) -> memoryview:
    """The array's bytes, row-major and little-endian, without a copy. (bfloat16 has no buffer format of its own.)"""
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    return memoryview(flat)  # type: ignore[arg-type]  # mlx's stubs do not declare the buffer it has
