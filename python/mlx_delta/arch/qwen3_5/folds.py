"""Which norms and matrices of a Qwen3.5 layer can take a scale off the matrices that read them (``conversion.awq``).

Two producers have fewer channels than their readers have columns: v_proj's rows go to o_proj through attention, which
mixes positions but not channels, once for each query head of a key/value head (the output gate is elementwise, so it
does not matter); the gated norm's weight is one for all heads.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlx_delta.arch.base import Fold


def _shared_by_heads(weight: Callable[[str], mx.array], columns: int) -> np.ndarray:
    return np.arange(columns) % weight("linear_attn.norm").shape[0]


def _through_attention(weight: Callable[[str], mx.array], columns: int) -> np.ndarray:
    column, dim = np.arange(columns), weight("self_attn.q_norm").size
    head = column // dim // (columns // weight("self_attn.v_proj").shape[0])  # consecutive query heads share one
    return head * dim + column % dim


# Matrices that stay bfloat16 are scaled too.
FOLDS = (
    Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fold(
        "input_layernorm",
        ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_a", "linear_attn.in_proj_b"),
    ),
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
    Fold("self_attn.v_proj", ("self_attn.o_proj",), _through_attention),
    Fold("linear_attn.norm", ("linear_attn.out_proj",), _shared_by_heads),
)
