"""The published Qwen3.5 sizes: their text configs, as Hugging Face has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_delta.arch.registry import parse_config
from mlx_delta.config import ModelConfig
from mlx_delta.errors import ArgumentError

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "configs.json").read_text(encoding="utf-8"))


def size_named(text: str) -> str:
    """The key of CONFIGS for what a user typed: "9b" is "9B". Raises: ArgumentError naming the choices."""
    found = next((size for size in CONFIGS if size.lower() == text.lower()), None)
    if found is None:
        raise ArgumentError(f"shape: expected one of {', '.join(CONFIGS)}, found {text}")
    return found


def config_of(size: str, layers: int | None = None) -> ModelConfig:
    """The text model of ``size``; ``layers``: only that many of its layers, from the first.

    Raises: ArgumentError for a number of layers that the size does not have.
    """
    text = dict(CONFIGS[size]["text_config"])
    whole = text["num_hidden_layers"]
    if layers is not None:
        if not 1 <= layers <= whole:
            raise ArgumentError(f"layers: expected 1 to {whole} for the {size}, found {layers}")
        text["num_hidden_layers"] = layers
    model_type = CONFIGS[size].get("model_type", "qwen3_5")
    return parse_config({"model_type": model_type, "text_config": text}, f"configs.json: {size}")
