"""config.json of Qwen3.5 with experts. Source: Hugging Face ``configuration_qwen3_5_moe.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_delta.arch.qwen3_5.config import MOST, common_config, text_section
from mlx_delta.config import ExpertsConfig, TextConfig
from mlx_delta.errors import ConfigError

_MOST_EXPERTS = 4096
MOST_CHOSEN = 16  # of the experts of one token: what the kernels hold of it


def text_config(raw: Mapping[str, Any], origin: str) -> TextConfig:
    """The language model's dimensions, of a whole config.json or of its text model's alone.

    Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
    """
    text = text_section(raw, origin)
    experts = ExpertsConfig(
        count=text.integer("num_experts", most=_MOST_EXPERTS),
        chosen=text.integer("num_experts_per_tok", most=MOST_CHOSEN),
        shared_size=text.integer("shared_expert_intermediate_size", most=MOST),
    )
    if experts.chosen > experts.count:
        raise text.wrong("num_experts_per_tok", f"at most num_experts = {experts.count}")
    if text.values.get("mlp_only_layers"):
        raise text.wrong("mlp_only_layers", "none: every layer has experts")
    if not text.flag("norm_topk_prob", True):
        raise ConfigError(f"{text.origin}: norm_topk_prob: expected true, found false")
    common = common_config(raw, origin, text.integer("moe_intermediate_size", most=MOST))
    return replace(common, experts=experts)
