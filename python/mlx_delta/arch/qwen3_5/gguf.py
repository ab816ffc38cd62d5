"""Qwen3.5 in GGUF files: ``general.architecture`` qwen35."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_delta.arch.base import GGUFFormat
from mlx_delta.arch.qwen3_5.gguf_names import (
    canonical_from_gguf,
    gguf_from_canonical,
    grouped_from_tiled,
    tiled_from_grouped,
)
from mlx_delta.checkpoint.source import Source
from mlx_delta.config import ModelConfig, TextConfig

if TYPE_CHECKING:
    from mlx_delta.checkpoint.gguf_file import GGUFFile

_OF_VALUE_HEADS = "linear_attn.out_proj.weight"  # what it reads is value heads, which llama.cpp keeps in its own order


def _config(file: GGUFFile) -> dict[str, Any]:
    from mlx_delta.arch.qwen3_5.gguf_config import config_from_gguf  # this and the next take a while to import

    return config_from_gguf(file.metadata, file.shapes, file.path)


def _source(file: GGUFFile, config: ModelConfig) -> Source:
    from mlx_delta.arch.qwen3_5.gguf_source import GGUFSource

    return GGUFSource(file, config)


def _inputs_from(canonical: str, values: np.ndarray, text: TextConfig) -> np.ndarray:
    tiled = canonical.endswith(_OF_VALUE_HEADS) and values.size == text.value_dim
    return grouped_from_tiled(values, text) if tiled else values


def _inputs_to(canonical: str, values: np.ndarray, text: TextConfig) -> np.ndarray:
    return tiled_from_grouped(values, text) if canonical.endswith(_OF_VALUE_HEADS) else values


GGUF = GGUFFormat(
    name="qwen35",
    config=_config,
    source=_source,
    canonical_name=canonical_from_gguf,
    stored_name=gguf_from_canonical,
    inputs_from=_inputs_from,
    inputs_to=_inputs_to,
)
