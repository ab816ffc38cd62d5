"""A GGUF file as a checkpoint: canonical names, value heads in grouped order, config and tokenizer from its metadata.

    names   by ``gguf_names``
    heads   value heads are stored tiled: rows of v in attn_qkv, of attn_gate, ssm_alpha and ssm_beta, channels of v in
            ssm_conv1d, ssm_a, ssm_dt.bias, and columns of ssm_out are put back in grouped order
    values  ssm_a = -exp(A_log); norms are final (1 + w); the convolution is [C, 4]
    types   F32, F16 and BF16 as they are; any other is dequantized by the gguf package and rounded to bfloat16

Source: llama.cpp ``convert_hf_to_gguf.py`` (Qwen3.5) and the GGUF specification.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.gguf_reader import READER_SUPPORTED_VERSIONS
from gguf.quants import dequantize

from mlx_delta.checkpoint.gguf_metadata import ARCHITECTURE, model_config, read_metadata
from mlx_delta.checkpoint.gguf_names import canonical_from_gguf, is_left_out, regrouped
from mlx_delta.checkpoint.gguf_tokenizer import tokenizer_files
from mlx_delta.checkpoint.source import TensorInfo, files_beside
from mlx_delta.errors import CheckpointError

_FLOATS = {
    GGMLQuantizationType.F32: (np.float32, mx.float32),
    GGMLQuantizationType.F16: (np.float16, mx.float16),
    GGMLQuantizationType.BF16: (np.uint16, mx.bfloat16),
}
_BLOCK_BYTES = 1 << 25  # dequantized to float32 in one go


class GGUFSource:
    """A .gguf file of architecture qwen35, presented under canonical names with canonical values.

    Raises: CheckpointError naming the file, and the key or tensor, for what is damaged or no Qwen3.5 text model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = _open(path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        self._metadata = read_metadata(reader, path)
        self.config = model_config(self._metadata, {name: _shape(tensor) for name, tensor in stored.items()}, path)
        # Ollama's key: false where value heads are grouped, as Hugging Face has them. llama.cpp has them tiled always.
        self._tiled = self._metadata.get(f"{ARCHITECTURE}.ssm.v_head_reordered", True)
        self._stored: dict[str, ReaderTensor] = {}
        for name, tensor in stored.items():
            canonical = canonical_from_gguf(name, self.config.text.num_layers)
            if canonical is not None and canonical in self._stored:
                raise CheckpointError(f"{path}: expected one {canonical}, found {self._stored[canonical].name}, {name}")
            if canonical is not None:
                self._stored[canonical] = tensor
            elif not is_left_out(name, self.config.text.num_layers):
                raise CheckpointError(f"{path}: expected tensors of a Qwen3.5 text model, found {name}")
        self._check_types()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Canonical name -> shape and dtype as ``load`` gives them."""
        return {name: self._info(name, tensor) for name, tensor in self._stored.items()}

    def load(self, name: str) -> mx.array:
        """The tensor of that canonical name, read from the file now. Raises: CheckpointError when there is none."""
        if name not in self._stored:
            raise CheckpointError(f"{self.path}: expected a tensor {name}, found nothing")
        tensor = self._stored[name]
        dtype = self.tensors[name].dtype
        if name.endswith(".A_log"):
            return mx.array(_a_log(self._heads(tensor))).astype(dtype)
        array = self._grouped(name, _read(self.path, tensor))
        return array.reshape(self.tensors[name].shape).astype(dtype)

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer and template: those beside the file where tokenizer.json is there, else rebuilt from metadata."""
        beside = files_beside(self.path.parent)
        return beside if "tokenizer.json" in beside else tokenizer_files(self._metadata, self.path)

    def _info(self, name: str, tensor: ReaderTensor) -> TensorInfo:
        shape = _shape(tensor)
        if name.endswith(".conv1d.weight"):
            shape = (*(n for n in shape if n != 1), 1)  # the axis of 1 may be there
        dtype = _FLOATS.get(tensor.tensor_type, (None, mx.bfloat16))[1]
        if name.endswith((".A_log", ".dt_bias")):
            dtype = self._parameter_dtype(name, tensor)
        return TensorInfo(shape, dtype, int(np.prod(shape)) * dtype.size, self.path)

    def _parameter_dtype(self, name: str, tensor: ReaderTensor) -> mx.Dtype:
        """bfloat16 where the original was: GGUF has these few values in float32, and they keep their dtype.

        A bfloat16 original shows: every value is one (dt_bias), or its float32 image of one, to 2 ulp (A_log).
        """
        values = self._heads(tensor)
        wanted = _a_log(values) if name.endswith(".A_log") else values
        rounded = np.array(mx.array(wanted).astype(mx.bfloat16).astype(mx.float32))
        if name.endswith(".A_log"):
            exact = np.allclose(-np.exp(rounded.astype(np.float64)), values, rtol=2.4e-7, atol=0)
        else:
            exact = np.array_equal(rounded, values)
        return mx.bfloat16 if exact else mx.float32

    def _heads(self, tensor: ReaderTensor) -> np.ndarray:
        """A parameter per value head, float32 in grouped order."""
        values = _read(self.path, tensor).astype(mx.float32)
        return np.array(self._grouped(".A_log", values))

    def _grouped(self, name: str, array: mx.array) -> mx.array:
        return regrouped(name, array, self.config.text) if self._tiled else array

    def _check_types(self) -> None:
        """Each type of the stored matrices can be dequantized, tried on one block of zeros."""
        for kind, tensor in {tensor.tensor_type: tensor for tensor in self._stored.values()}.items():
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


def _open(path: Path) -> GGUFReader:
    """Raises: CheckpointError for another kind of file, another version, the other byte order, and for damage."""
    with path.open("rb") as stream:
        start = stream.read(8)
    if start[:4] != b"GGUF":
        raise CheckpointError(f"{path}: expected a GGUF file, found one that begins with {start[:4]!r}")
    little, big = int.from_bytes(start[4:], "little"), int.from_bytes(start[4:], "big")
    if little not in READER_SUPPORTED_VERSIONS and big in READER_SUPPORTED_VERSIONS:
        advice = "`gguf-convert-endian FILE little` of the package gguf turns it round"
        raise CheckpointError(f"{path}: expected a little-endian GGUF file, found a big-endian one: {advice}")
    if little not in READER_SUPPORTED_VERSIONS:
        known = " or ".join(map(str, READER_SUPPORTED_VERSIONS))
        raise CheckpointError(f"{path}: expected version {known} of GGUF, found {little}")
    try:
        return _Reader(path)
    except EOFError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path}: truncated: expected at least {error.args[0]} bytes, found {size}") from error
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{path}: expected a whole GGUF file, found damage: {error}") from error


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


def _a_log(ssm_a: np.ndarray) -> np.ndarray:
    """A_log = log(-ssm_a), in float64 so that what was a bfloat16 rounds back to it."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is found, and named, where all weights are checked
        return np.log(-ssm_a.astype(np.float64)).astype(np.float32)
