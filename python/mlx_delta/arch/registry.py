"""Architectures by the model_type of config.json, and config.json through the one that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_delta.arch.base import Architecture, Markup
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.qwen3_5_moe import QWEN3_5_MOE
from mlx_delta.config import ModelConfig, TextConfig, quantization_of
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.json_files import read_json

_known: dict[str, Architecture] = {}


def register(architecture: Architecture) -> None:
    """Make its model types known; the last one registered for a type counts."""
    _known.update(dict.fromkeys(architecture.model_types, architecture))


register(QWEN3_5)
register(QWEN3_5_MOE)


def architecture_of(config: ModelConfig | TextConfig) -> Architecture:
    return _known[config.model_type]


def markup_of(model_type: object) -> Markup:
    """That of the architecture of this model type; the first one's where there is none of the name."""
    return _known[model_type if isinstance(model_type, str) and model_type in _known else next(iter(_known))].markup


def parse_config(raw: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
    """A Hugging Face (or MLX-converted) config; ``origin`` names the file in errors.

    Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _known:
        raise ConfigError(f"{origin}: model_type: expected one of {', '.join(_known)}, found {model_type!r}")
    architecture = _known[model_type]
    text = replace(architecture.text_config(raw, origin), model_type=model_type)
    return ModelConfig(model_type, text, quantization_of(raw, origin, architecture.canonical_name), dict(raw))


def read_config(directory: Path) -> ModelConfig:
    """``directory/config.json``. Raises: ConfigError when it is not there or not valid."""
    file = directory / "config.json"
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ConfigError(f"{directory}: expected a model directory, found {found}")
    if not file.is_file():
        raise ConfigError(f"{file}: expected a model's config.json, found nothing")
    return parse_config(read_json(file, ConfigError), str(file))


def gguf_architecture(name: object, path: Path) -> Architecture:
    """That of a GGUF file whose ``general.architecture`` is ``name``. Raises: CheckpointError for an unknown one."""
    known = {each.gguf.name: each for each in _known.values() if each.gguf is not None}
    if not isinstance(name, str) or name not in known:
        expected = " or ".join(known)
        raise CheckpointError(f"{path}: general.architecture: expected {expected}, found {name}")
    return known[name]
