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

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

from mlx_delta.checkpoint.gguf_metadata import model_config, read_metadata
from mlx_delta.checkpoint.gguf_names import canonical_from_gguf, is_mtp, regrouped
from mlx_delta.checkpoint.gguf_tokenizer import tokenizer_files
from mlx_delta.checkpoint.source import CheckpointError, TensorInfo, files_beside

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
        self._stored: dict[str, ReaderTensor] = {}
        for name, tensor in stored.items():
            canonical = canonical_from_gguf(name, self.config.text.num_layers)
            if canonical is not None:
                self._stored[canonical] = tensor
            elif not is_mtp(name, self.config.text.num_layers):
                raise CheckpointError(f"{path}: expected tensors of a Qwen3.5 text model, found {name}")
        self._check_size()

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
        array = regrouped(name, _read(self.path, tensor), self.config.text)
        return array.reshape(self.tensors[name].shape).astype(dtype)

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer and template: those beside the file where tokenizer.json is there, else rebuilt from metadata."""
        beside = files_beside(self.path.parent)
        return beside if "tokenizer.json" in beside else tokenizer_files(self._metadata, self.path)

    def _info(self, name: str, tensor: ReaderTensor) -> TensorInfo:
        shape = _shape(tensor)
        if name.endswith(".conv1d.weight"):
            shape = (*shape, 1)
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
        return np.array(regrouped(".A_log", values, self.config.text))

    def _check_size(self) -> None:
        size = self.path.stat().st_size
        for name, tensor in self._stored.items():
            end = int(tensor.data_offset + tensor.n_bytes)
            if end > size:
                raise CheckpointError(f"{self.path}: truncated: expected {end} bytes for {name}, found {size}")


def _open(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: expected a whole GGUF file, found {error}") from error


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
        try:
            values = dequantize(raw.reshape(count, row_bytes), tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise CheckpointError(f"{path}: {tensor.name}: expected a type that gguf reads, found {kind}") from error
        parts.append(mx.array(values).astype(mx.bfloat16))
        mx.eval(parts[-1])
    return mx.concatenate(parts).reshape(shape)


def _a_log(ssm_a: np.ndarray) -> np.ndarray:
    """A_log = log(-ssm_a), in float64 so that what was a bfloat16 rounds back to it."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is found, and named, where all weights are checked
        return np.log(-ssm_a.astype(np.float64)).astype(np.float32)
