"""Qwen3.5 with experts in GGUF files: ``general.architecture`` qwen35moe, but for experts as qwen35."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_delta.arch.qwen3_5.gguf import GGUF as DENSE

if TYPE_CHECKING:
    from mlx_delta.checkpoint.gguf_file import GGUFFile

_KEYS = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}


def _config(file: GGUFFile) -> dict[str, Any]:
    from mlx_delta.arch.qwen3_5.gguf_config import config_from_gguf  # it takes a while to import

    return config_from_gguf(file.metadata, file.shapes, file.path, "qwen3_5_moe", _KEYS)


GGUF = replace(DENSE, name="qwen35moe", config=_config)
