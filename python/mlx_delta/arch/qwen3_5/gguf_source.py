"""A GGUF file as a Qwen3.5 checkpoint: canonical names, value heads in grouped order.

    names   by ``gguf_names``
    heads   value heads are stored tiled: rows of v in attn_qkv, of attn_gate, ssm_alpha and ssm_beta, channels of v in
            ssm_conv1d, ssm_a, ssm_dt.bias, and columns of ssm_out are put back in grouped order
    values  ssm_a = -exp(A_log); norms are final (1 + w); the convolution is [C, 4]

Source: llama.cpp ``convert_hf_to_gguf.py`` (Qwen3.5).
"""

from __future__ import annotations

import math
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_delta.arch.qwen3_5.gguf_names import canonical_from_gguf, is_left_out, regrouped
from mlx_delta.arch.qwen3_5.gguf_tokenizer import tokenizer_files
from mlx_delta.checkpoint.gguf_file import GGUFFile
from mlx_delta.checkpoint.source import TensorInfo, files_beside
from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError


class GGUFSource:
    """A GGUF file of a Qwen3.5 text model, presented under canonical names with canonical values.

    Raises: CheckpointError naming the file and the tensor that is no Qwen3.5 text model's.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self.path = file.path
        self._file = file
        self._text = config.text
        # Ollama's key: false where value heads are grouped, as Hugging Face has them. llama.cpp has them tiled always.
        self._tiled = file.metadata.get(f"{file.metadata['general.architecture']}.ssm.v_head_reordered", True)
        self._stored: dict[str, str] = {}  # canonical name -> that of the file
        for name in file.shapes:
            canonical = canonical_from_gguf(name, self._text.num_layers)
            if canonical is not None and canonical in self._stored:
                raise CheckpointError(f"{self.path}: expected one {canonical}, found {self._stored[canonical]}, {name}")
            if canonical is not None:
                self._stored[canonical] = name
            elif not is_left_out(name, self._text.num_layers):
                raise CheckpointError(f"{self.path}: expected tensors of a Qwen3.5 text model, found {name}")
        file.check_types(self._stored.values())

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Canonical name -> shape and dtype as ``load`` gives them."""
        return {name: self._info(name) for name in self._stored}

    def load(self, name: str) -> mx.array:
        """The tensor of that canonical name, read from the file now. Raises: CheckpointError when there is none."""
        if name not in self._stored:
            raise CheckpointError(f"{self.path}: expected a tensor {name}, found nothing")
        dtype = self.tensors[name].dtype
        if name.endswith(".A_log"):
            return mx.array(_a_log(self._heads(name))).astype(dtype)
        array = self._grouped(name, self._file.read(self._stored[name]))
        return array.reshape(self.tensors[name].shape).astype(dtype)

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer and template: those beside the file where tokenizer.json is there, else rebuilt from metadata."""
        beside = files_beside(self.path.parent)
        return beside if "tokenizer.json" in beside else tokenizer_files(self._file.metadata, self.path)

    def _info(self, name: str) -> TensorInfo:
        shape, dtype = self._file.shapes[self._stored[name]], self._file.dtype(self._stored[name])
        if name.endswith(".conv1d.weight"):
            shape = (*(n for n in shape if n != 1), 1)  # the axis of 1 may be there
        if name.endswith(".shared_expert_gate.weight"):
            shape = (1, *(n for n in shape if n != 1))
        if name.endswith((".A_log", ".dt_bias")):
            dtype = self._parameter_dtype(name)
        return TensorInfo(shape, dtype, math.prod(shape) * dtype.size, self.path)

    def _parameter_dtype(self, name: str) -> mx.Dtype:
        """bfloat16 where the original was: GGUF has these few values in float32, and they keep their dtype.

        A bfloat16 original shows: every value is one (dt_bias), or its float32 image of one, to 2 ulp (A_log).
        """
        values = self._heads(name)
        wanted = _a_log(values) if name.endswith(".A_log") else values
        rounded = np.array(mx.array(wanted).astype(mx.bfloat16).astype(mx.float32))
        if name.endswith(".A_log"):
            exact = np.allclose(-np.exp(rounded.astype(np.float64)), values, rtol=2.4e-7, atol=0)
        else:
            exact = np.array_equal(rounded, values)
        return mx.bfloat16 if exact else mx.float32

    def _heads(self, name: str) -> np.ndarray:
        """A parameter per value head, float32 in grouped order."""
        values = self._file.read(self._stored[name]).astype(mx.float32)
        return np.array(self._grouped(".A_log", values))

    def _grouped(self, name: str, array: mx.array) -> mx.array:
        return regrouped(name, array, self._text) if self._tiled else array


def _a_log(ssm_a: np.ndarray) -> np.ndarray:
    """A_log = log(-ssm_a), in float64 so that what was a bfloat16 rounds back to it."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is found, and named, where all weights are checked
        return np.log(-ssm_a.astype(np.float64)).astype(np.float32)
