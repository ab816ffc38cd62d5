"""A checkpoint directory to a ``LanguageModel``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx

from mlx_delta.checkpoint.names import canonical_tensors
from mlx_delta.checkpoint.source import Source, gguf_file, open_source
from mlx_delta.checkpoint.tensors import Tensor, base_name, check_tensors, expected_shapes
from mlx_delta.config import ModelConfig
from mlx_delta.errors import ArgumentError, CheckpointError
from mlx_delta.hub.path import model_path
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.qwen3_5 import Network
from mlx_delta.ops.matrix import use_huge_pages
from mlx_delta.text.tokenizer import Tokenizer

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load_model(path: str | Path, dtype: mx.Dtype | str | None = None) -> LanguageModel:
    """Load an official, converted or mlx-community Qwen3.5 checkpoint.

    path: a directory, or a model's name on the Hugging Face Hub, ``org/name[@revision]``, which is downloaded at its
    first use (``hub.path.model_path``). dtype: of the activations, float32, float16 or bfloat16 (the default: what the
    checkpoint's embedding or its scales have). Weights stay as they are stored, whatever it is.
    Raises: ConfigError, CheckpointError, TokenizerError naming the file and the tensor; HubError, a
    CheckpointError.
    """
    check_dtype(dtype)
    directory = model_path(path)
    if gguf_file(directory) is not None:
        raise CheckpointError(
            f"{directory}: expected a directory of safetensors, found GGUF: convert it first, "
            f"mlx-delta convert -i {directory} -o DIRECTORY"
        )
    ModelConfig.from_dir(directory)  # says what is missing of a model directory
    return _from_source(open_source(directory), Tokenizer.from_dir(directory), dtype)


def load_source(checkpoint: Source, dtype: mx.Dtype | str | None = None) -> LanguageModel:
    """``load_model`` of a checkpoint of any format, a GGUF file's weights and tokenizer too."""
    return _from_source(checkpoint, source_tokenizer(checkpoint), dtype)


def source_tokenizer(checkpoint: Source) -> Tokenizer:
    """The tokenizer of a checkpoint of any format; its files may be rebuilt from metadata, and be in no directory."""
    with TemporaryDirectory() as directory:
        for name, content in checkpoint.side_files().items():
            (Path(directory) / name).write_bytes(content)
        return Tokenizer.from_dir(directory)


def _from_source(checkpoint: Source, tokenizer: Tokenizer, dtype: mx.Dtype | str | None) -> LanguageModel:
    tensors = canonical_tensors(checkpoint)
    check_tensors(tensors, checkpoint.config, checkpoint.path)
    chosen = _activation_dtype(tensors, dtype)
    network = Network.from_weights(checkpoint.config, _read(tensors, checkpoint.config), chosen)
    return LanguageModel(checkpoint.path, checkpoint.config, network, tokenizer)


def _activation_dtype(tensors: dict[str, Tensor], dtype: mx.Dtype | str | None) -> mx.Dtype:
    if dtype is None:
        embedding = "language_model.model.embed_tokens"
        return tensors.get(f"{embedding}.scales", tensors[f"{embedding}.weight"]).dtype
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def check_dtype(dtype: mx.Dtype | str | None) -> None:
    """Before anything is read or downloaded."""
    known = _DTYPES if isinstance(dtype, str) else (None, *_DTYPES.values())
    if dtype not in known:
        raise ArgumentError(f"dtype: expected float32, float16 or bfloat16, found {dtype}")


def _read(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, mx.array]:
    """The text model's tensors, in memory."""
    wanted = expected_shapes(config)
    weights = {}
    for name, tensor in tensors.items():
        if base_name(name) in wanted:
            weights[name] = tensor.load()
            mx.eval(weights[name])
    for weight in weights.values():  # now that each has its neighbours, with which it shares pages
        use_huge_pages(weight)
    return weights
