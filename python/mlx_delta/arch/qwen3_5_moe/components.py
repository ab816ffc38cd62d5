"""The rows of tables about a Qwen3.5 model with experts."""

from __future__ import annotations

from mlx_delta.arch.base import Components
from mlx_delta.arch.qwen3_5.components import COMPONENTS as DENSE

_EXPERTS = {
    "router": ("mlp.gate", "mlp.shared_expert_gate"),
    "experts' gate, up": ("switch_mlp.gate_proj", "switch_mlp.up_proj"),
    "experts' down": ("switch_mlp.down_proj",),
    "shared gate, up": ("shared_expert.gate_proj", "shared_expert.up_proj"),
    "shared down": ("shared_expert.down_proj",),
}
_rows = {label: ends for label, ends in DENSE.rows.items() if not any(end.startswith("mlp.") for end in ends)}
_before = ("embed_tokens", "lm_head")
COMPONENTS = Components({**{label: _rows.pop(label) for label in _before}, **_EXPERTS, **_rows})
