"""Where tensors come from: a checkpoint directory seen as names with shapes, loaded one at a time.

A ``Source`` knows every tensor's shape and dtype from the files' headers alone; ``load`` reads one tensor's bytes when
the array is evaluated. Names and values are the checkpoint's own: ``names.canonical_tensors`` turns them into MLX's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError
from mlx_delta.json_files import parse_json, read_json

SAFETENSORS_DTYPES: Mapping[str, mx.Dtype] = {
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
INDEX = "model.safetensors.index.json"
SIDE_FILES = (
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as its file's header describes it."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    nbytes: int
    file: Path


class Source(Protocol):
    """A checkpoint of any format: its config, and its tensors under their own names."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def load(self, name: str) -> mx.array: ...

    def side_files(self) -> dict[str, bytes]: ...


class SafetensorsSource:
    """A directory with config.json and one or more safetensors files.

    The index, where there is one, says which file holds which tensor; otherwise every ``model*.safetensors`` counts.

    Raises: CheckpointError naming the file (and tensor) for a missing, truncated or inconsistent one; ConfigError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = ModelConfig.from_dir(path)
        self.tensors = _indexed(path / INDEX) if (path / INDEX).is_file() else _unindexed(path)
        self._unread: dict[Path, dict[str, mx.array]] = {}

    def load(self, name: str) -> mx.array:
        """The tensor ``name``, lazily: its bytes are read at evaluation, and freed with the returned array.

        Raises: CheckpointError when the checkpoint has no such tensor.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: expected a tensor {name}, found nothing")
        file = self.tensors[name].file
        # An array handed out is forgotten here: evaluated, it would otherwise stay in memory as long as the source.
        if name not in self._unread.get(file, {}):
            self._unread[file] = _load_file(file)
        return self._unread[file].pop(name)

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer, template and the like: file name -> content."""
        return files_beside(self.path)


def open_source(path: Path) -> Source:
    """The checkpoint at ``path``: a directory of safetensors, a .gguf file, or a directory that holds just one.

    Raises: ConfigError or CheckpointError saying what is missing.
    """
    gguf = gguf_file(path)
    if gguf is None:
        return SafetensorsSource(path)
    # Here, for it takes a while to import, and running a converted model never needs it.
    from mlx_delta.checkpoint.gguf_source import GGUFSource

    return GGUFSource(gguf)


def files_beside(directory: Path) -> dict[str, bytes]:
    """The files of ``directory`` that belong to a checkpoint beside its weights and config: name -> content."""
    files = {file for pattern in SIDE_FILES for file in directory.glob(pattern) if file.is_file()}
    return {file.name: file.read_bytes() for file in sorted(files)}


def gguf_file(path: Path) -> Path | None:
    """The .gguf file that ``path`` is, or that is the one thing in it; None for anything else."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if (path / "config.json").is_file() or (path / INDEX).is_file() or any(path.glob("model*.safetensors")):
        return None
    files = [file for file in sorted(path.glob("*.gguf")) if "mmproj" not in file.name.lower()]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path}: expected one .gguf file, found {names}: name the one to read")
    return files[0] if files else None


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, its size checked against what the header promises.

    Format: 8 bytes little-endian header length, JSON {name: {dtype, shape, data_offsets}}, then the data.
    Raises: CheckpointError naming the file, and the tensor where it is one tensor's fault.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{file}: expected a safetensors header, found a file of {size} bytes without one")
        header = parse_json(stream.read(length), f"{file}: header", CheckpointError)
    tensors = {name: _tensor_info(file, name, entry) for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + length + max((header[name]["data_offsets"][1] for name in tensors), default=0)
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise CheckpointError(f"{file}: {state}: expected {expected} bytes by its header, found {size}")
    return tensors


def _tensor_info(file: Path, name: str, entry: Any) -> TensorInfo:
    try:
        code, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: {name}: expected dtype, shape and data_offsets, found {entry!r:.80}") from error
    if code not in SAFETENSORS_DTYPES:
        known = ", ".join(SAFETENSORS_DTYPES)
        raise CheckpointError(f"{file}: {name}: dtype: expected one of {known}, found {code}")
    dtype = SAFETENSORS_DTYPES[code]
    nbytes = math.prod(shape) * dtype.size
    if begin < 0 or min(shape, default=0) < 0 or end - begin != nbytes:
        raise CheckpointError(
            f"{file}: {name}: expected {nbytes} bytes for {code} {list(shape)}, found offsets {begin} to {end}"
        )
    return TensorInfo(shape, dtype, nbytes, file)


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
