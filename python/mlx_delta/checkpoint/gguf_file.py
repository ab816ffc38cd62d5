"""A GGUF file: its metadata, and its tensors under their own names, read one at a time.

F32, F16 and BF16 are read as they are; any other type is dequantized by the gguf package and rounded to bfloat16.
Source: the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.gguf_reader import READER_SUPPORTED_VERSIONS
from gguf.quants import dequantize

from mlx_delta.errors import CheckpointError, MlxDeltaError

_FLOATS = {
    GGMLQuantizationType.F32: (np.float32, mx.float32),
    GGMLQuantizationType.F16: (np.float16, mx.float16),
    GGMLQuantizationType.BF16: (np.uint16, mx.bfloat16),
}
_BLOCK_BYTES = 1 << 25  # dequantized to float32 in one go


class GGUFFile:
    """metadata: every key with its value. shapes: of every tensor, the fastest axis last.

    Raises: CheckpointError naming the file, and the key, for what is damaged, or one part of a split file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = open_gguf(path, CheckpointError)
        self.metadata = _metadata(reader, path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> mx.Dtype:
        """What ``read`` gives."""
        return _FLOATS.get(self._tensors[name].tensor_type, (None, mx.bfloat16))[1]

    def read(self, name: str) -> mx.array:
        """The tensor of that name, now, as stored or dequantized to bfloat16."""
        return _read(self.path, self._tensors[name])

    def check_types(self, names: Iterable[str]) -> None:
        """Each type of these tensors can be dequantized, tried on one block of zeros. Raises: CheckpointError."""
        for kind, tensor in {self._tensors[name].tensor_type: self._tensors[name] for name in names}.items():
            try:
                if kind not in _FLOATS:
                    dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError as error:
                what = f"{self.path}: {tensor.name}: expected a type that the package gguf reads"
                raise CheckpointError(f"{what}, found {kind.name}") from error


class _Reader(GGUFReader):
    """Stops where the file does: numpy's slices would end there without a word, and a list of a billion go on."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise EOFError(end)
        return super()._get(offset, dtype, count, override_order)


def open_gguf(path: Path, failure: type[MlxDeltaError]) -> GGUFReader:
    """Of any kind of content, by the package gguf.

    Raises: ``failure`` for another kind of file, another version, the other byte order, and for damage.
    """
    with path.open("rb") as stream:
        start = stream.read(8)
    if start[:4] != b"GGUF":
        raise failure(f"{path}: expected a GGUF file, found one that begins with {start[:4]!r}")
    little, big = int.from_bytes(start[4:], "little"), int.from_bytes(start[4:], "big")
    if little not in READER_SUPPORTED_VERSIONS and big in READER_SUPPORTED_VERSIONS:
        advice = "`gguf-convert-endian FILE little` of the package gguf turns it round"
        raise failure(f"{path}: expected a little-endian GGUF file, found a big-endian one: {advice}")
    if little not in READER_SUPPORTED_VERSIONS:
        known = " or ".join(map(str, READER_SUPPORTED_VERSIONS))
        raise failure(f"{path}: expected version {known} of GGUF, found {little}")
    try:
        return _Reader(path)
    except EOFError as error:
        size = path.stat().st_size
        raise failure(f"{path}: truncated: expected at least {error.args[0]} bytes, found {size}") from error
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        raise failure(f"{path}: expected a whole GGUF file, found damage: {error}") from error


def _metadata(reader: GGUFReader, path: Path) -> dict[str, Any]:
    metadata = {}
    for name, field in reader.fields.items():
        try:
            metadata[name] = field.contents()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: {name}: expected UTF-8, found {error.object[:40]!r}") from error
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(f"{path}: split.count: expected a whole file, found 1 of {parts} parts")
    return metadata


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """GGUF lists the fastest axis first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _read(path: Path, tensor: ReaderTensor) -> mx.array:
    """The tensor as stored, or dequantized to bfloat16.

    Read, not mapped: the touched pages of a mapping count as resident until the file is closed.
    """
    shape, offset = _shape(tensor), int(tensor.data_offset)
    if tensor.tensor_type in _FLOATS:
        stored, dtype = _FLOATS[tensor.tensor_type]
        values = np.fromfile(path, stored, int(tensor.n_elements), offset=offset)
        return mx.array(values).view(dtype).reshape(shape)
    block, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
    row_bytes = shape[-1] // block * block_bytes
    rows = int(np.prod(shape[:-1]))
    step = max(1, _BLOCK_BYTES // (4 * shape[-1]))
    parts = []
    for start in range(0, rows, step):
        count = min(step, rows - start)
        raw = np.fromfile(path, np.uint8, count * row_bytes, offset=offset + start * row_bytes)
        values = dequantize(raw.reshape(count, row_bytes), tensor.tensor_type)
        parts.append(mx.array(values).astype(mx.bfloat16))
        mx.eval(parts[-1])
    return mx.concatenate(parts).reshape(shape)
