"""How wide the recipes make Qwen3.5's matrices.

unsloth: what feeds the recurrent and attention states gets more bits than the MLPs, and what leaves them stays whole.
in_proj_a and in_proj_b are too small to matter, and they steer the recurrence.
"""

from __future__ import annotations

from mlx_delta.arch.base import Recipes

RECIPES = Recipes(
    linear=(
        "language_model.lm_head",
        "language_model.model.embed_tokens",
        "language_model.model.layers.*_proj",
        "language_model.model.layers.*.in_proj_*",
    ),
    unsloth=(
        ("language_model.*.mlp.gate_proj", 0),
        ("language_model.*.mlp.up_proj", 0),
        ("language_model.*.mlp.down_proj", 1),
        ("language_model.*.self_attn.[qkv]_proj", 2),
        ("language_model.*.linear_attn.in_proj_qkv", 2),
        ("language_model.*.linear_attn.in_proj_z", 2),
        ("language_model.model.embed_tokens", 2),
        ("language_model.lm_head", 3),
    ),
    kept=(".A_log", ".dt_bias"),
    fixed=("in_proj_a", "in_proj_b"),
)
