"""How wide the recipes make the matrices of Qwen3.5 with experts.

What chooses stays precise: the router at 8 bits by the recipes for all, as mlx-lm has it, and whole by unsloth; a
token that goes to another expert is another answer. The shared expert and the mixers read every token, and are a small
part of the weights.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_delta.arch.qwen3_5.recipe import RECIPES as DENSE

_MLP = "language_model.*.mlp."

RECIPES = replace(
    DENSE,
    unsloth=(
        (f"{_MLP}switch_mlp.gate_proj", 0),
        (f"{_MLP}switch_mlp.up_proj", 0),
        (f"{_MLP}switch_mlp.down_proj", 1),
        (f"{_MLP}shared_expert.*_proj", 3),
        *(rule for rule in DENSE.unsloth if not rule[0].startswith(_MLP)),
    ),
)
