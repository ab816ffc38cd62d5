"""The tensors of a layer's experts, by canonical name: one for all experts of a kind, [E, N, K]."""

from __future__ import annotations

from mlx_delta.arch.qwen3_5 import shapes as dense
from mlx_delta.checkpoint.tensors import Shapes
from mlx_delta.config import ModelConfig, TextConfig


def text_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of the unquantized text model, in the order a converted file has them."""
    return dense.text_shapes(config, experts_shapes)


def mtp_shapes(config: ModelConfig) -> Shapes:
    """Of the MTP head, whose layers have experts too."""
    return dense.mtp_shapes(config, experts_shapes)


def experts_shapes(text: TextConfig) -> Shapes:
    """gate is the router: a row for each expert; shared_expert_gate the one row that weighs the shared expert."""
    assert text.experts is not None
    hidden, inner, count, shared = (
        text.hidden_size,
        text.intermediate_size,
        text.experts.count,
        text.experts.shared_size,
    )
    return {
        "mlp.gate.weight": (count, hidden),
        "mlp.shared_expert_gate.weight": (1, hidden),
        "mlp.switch_mlp.gate_proj.weight": (count, inner, hidden),
        "mlp.switch_mlp.up_proj.weight": (count, inner, hidden),
        "mlp.switch_mlp.down_proj.weight": (count, hidden, inner),
        "mlp.shared_expert.gate_proj.weight": (shared, hidden),
        "mlp.shared_expert.up_proj.weight": (shared, hidden),
        "mlp.shared_expert.down_proj.weight": (hidden, shared),
    }
