"""Which norms and matrices of a layer with experts can take a scale off the matrices that read them.

All experts read what the norm before them gives, each for its own tokens; the shared expert reads every token, and
speaks for all. An expert's own up_proj could take scales off its down_proj, but the statistics of one expert are those
of a few tokens, and its down_proj is fitted by them anyway.
"""

from __future__ import annotations

from mlx_delta.arch.base import Fold
from mlx_delta.arch.qwen3_5.folds import FOLDS as DENSE

_SHARED = "mlp.shared_expert."

FOLDS = (
    *(fold for fold in DENSE if not any(name.startswith("mlp.") for name in fold.consumers)),
    Fold(
        "post_attention_layernorm",
        (
            f"{_SHARED}gate_proj",
            f"{_SHARED}up_proj",
            "mlp.switch_mlp.gate_proj",
            "mlp.switch_mlp.up_proj",
            "mlp.gate",
            "mlp.shared_expert_gate",
        ),
    ),
    Fold(f"{_SHARED}up_proj", (f"{_SHARED}down_proj",)),
)
