"""How wide the recipes make the matrices of Qwen3.5 with experts.

What chooses stays whole: a token that goes to another expert is another answer, and a router is 1 MB of a layer's 400.
The shared expert and the mixers read every token, and are a small part of the weights.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_delta.arch.qwen3_5.recipe import RECIPES as DENSE

_MLP = "language_model.*.mlp."

RECIPES = replace(
    DENSE,
    fixed=(*DENSE.fixed, "mlp.gate", "mlp.shared_expert_gate"),
    unsloth=(
        (f"{_MLP}switch_mlp.gate_proj", 0),
        (f"{_MLP}switch_mlp.up_proj", 0),
        (f"{_MLP}switch_mlp.down_proj", 1),
        (f"{_MLP}shared_expert.*_proj", 3),
        *(rule for rule in DENSE.unsloth if not rule[0].startswith(_MLP)),
    ),
)
