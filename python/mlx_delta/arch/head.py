"""An MTP head from a directory of its own, for a model whose files lack one.

    "qwen3_5_mtp"    as mlx-vlm splits it off and mlx-community publishes it: a config.json with the model's text_config
                     and the head's own quantization; names without "mtp.", norms 1 + w. Under names with "mtp." they
                     are Hugging Face's, and norms w.
    a checkpoint     of which the head alone is read: the original that a model without head was converted from.

Source: mlx-vlm ``speculative/drafters/qwen3_5_mtp``, its pull requests 1167 and 1554.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.arch.registry import architecture_of
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.checkpoint.source import HEAD_CONFIG, Source, TensorInfo
from mlx_delta.checkpoint.tensors import Tensor, base_name
from mlx_delta.config import ModelConfig, Quantization, quantization_of
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.json_files import Section, read_json

_KIND = "qwen3_5_mtp"  # model_type
# What a head's layer, and the tokens that it reads and writes, have of their model.
_SHARED = (
    "hidden_size",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "experts",
)


def head_beside(checkpoint: Checkpoint) -> Path | None:
    """The directory of the first kind within the model's; None where there is none, or the model has a head."""
    config = checkpoint.path / HEAD_CONFIG
    if not config.is_file() or read_json(config, ConfigError).get("model_type") != _KIND:
        return None
    own = (info.file.parent == checkpoint.path for n, info in checkpoint.stored.items() if n.startswith("mtp."))
    return None if any(own) else config.parent


def with_head(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with the head of directory ``path`` in place of its own, if it has one.

    Raises: ConfigError where head and model differ in a dimension, or the directory's config is not valid;
    CheckpointError where it has no head, or not all of one. Both name the files.
    """
    file = path / "config.json"
    raw = read_json(file, ConfigError) if file.is_file() else {}
    head = _split_off(checkpoint, path, raw) if raw.get("model_type") == _KIND else open_checkpoint(path, gguf=False)
    for key in _SHARED:
        expected, found = getattr(checkpoint.config.text, key), getattr(head.config.text, key)
        if found != expected:
            raise ConfigError(f"{file}: {key}: expected {expected}, as {checkpoint.path} has, found {found}")
    tensors = head.mtp_tensors()
    if not tensors:
        raise CheckpointError(f"{path}: expected an MTP head, found no tensors named mtp.*")
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("mtp.")}
    return replace(
        checkpoint,
        config=_merged(checkpoint.config, head.config, tensors),
        tensors={**others, **{n: replace(t, source_name=_Both.named(path, t)) for n, t in tensors.items()}},
        source=_Both(checkpoint.source, head.source),
    )


def _split_off(checkpoint: Checkpoint, path: Path, raw: Mapping[str, Any]) -> Checkpoint:
    """What mlx-vlm splits off, as a checkpoint without the text model."""
    origin, architecture = str(path / "config.json"), architecture_of(checkpoint.config)
    text = Section(raw, origin, ConfigError).section("text_config").values
    whole = {**raw, "model_type": checkpoint.config.model_type, "text_config": {"mtp_num_hidden_layers": 1, **text}}
    config = ModelConfig(
        checkpoint.config.model_type,
        architecture.text_config(whole, origin),
        quantization_of(raw, origin, lambda name: architecture.canonical_name(_prefixed(name))),
        whole,
    )
    bare = _Bare(SafetensorsSource(path))
    source = architecture.source(bare, config)
    tensors = architecture.canonical_tensors(source, config, {})
    return Checkpoint(path, config, architecture, {}, tensors, source)


def _prefixed(name: str) -> str:
    """MLX's name of a head's tensor: so its norms are taken to be 1 + w. Hugging Face's as it is."""
    return name if name.startswith("mtp.") else f"language_model.mtp.{name}"


def _merged(model: ModelConfig, head: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The model's, with what the head's says of the head."""
    widths: dict[str, Quantization] = {m: w for m, w in model.quantization.items() if not m.startswith("mtp.")}
    for name in tensors:
        module = base_name(name).removesuffix(".weight")
        if name.endswith(".scales") and (width := head.module_quantization(module)) is not None:
            widths[module] = width
    section = head.raw.get("text_config", head.raw)
    raw = {**model.raw}
    layers = {"mtp_num_hidden_layers": section["mtp_num_hidden_layers"]}
    if isinstance(raw.get("text_config"), Mapping):
        raw["text_config"] = {**raw["text_config"], **layers}
    else:
        raw |= layers
    return replace(model, quantization=widths, raw=raw)


class _Bare:
    """A head's source, under names with a prefix."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stored = {_prefixed(name): name for name in source.tensors}
        self.tensors = {name: source.tensors[stored] for name, stored in self._stored.items()}

    @property
    def path(self) -> Path:
        return self._source.path

    def load(self, name: str) -> mx.array:
        return self._source.load(self._stored[name])

    def side_files(self) -> dict[str, bytes]:
        return {}


class _Both:
    """A model's source and its head's. The head's tensors are named with their directory."""

    def __init__(self, model: Source, head: Source) -> None:
        self._model, self._head = model, head
        self._stored = {f"{head.path}: {name}": name for name in head.tensors}
        self.tensors: dict[str, TensorInfo] = {
            **model.tensors,
            **{name: head.tensors[stored] for name, stored in self._stored.items()},
        }

    @staticmethod
    def named(path: Path, tensor: Tensor) -> str:
        return f"{path}: {tensor.source_name}"

    @property
    def path(self) -> Path:
        return self._model.path

    def load(self, name: str) -> mx.array:
        return self._head.load(self._stored[name]) if name in self._stored else self._model.load(name)

    def side_files(self) -> dict[str, bytes]:
        return self._model.side_files()
