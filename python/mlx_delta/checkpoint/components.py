"""The rows of every table about a model: which kind of tensor a canonical name is."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_delta.checkpoint.tensors import base_name

# Component -> the ends of its modules' names, in the order that tables show.
_COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "embed_tokens": ("embed_tokens",),
    "lm_head": ("lm_head",),
    "gate, up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "q, k, v": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "in_proj_qkv, z": ("in_proj_qkv", "in_proj_z"),
    "in_proj_a, b": ("in_proj_a", "in_proj_b"),
    "o_proj, out_proj": ("self_attn.o_proj", "linear_attn.out_proj"),
    "conv1d, A_log, dt_bias": ("conv1d", "A_log", "dt_bias"),
    "norms": ("norm",),
}
COMPONENTS = (*_COMPONENTS, "vision", "mtp")


def component(name: str) -> str:
    """The row of a table that a canonical tensor (or its scales, biases) belongs to: one of COMPONENTS."""
    if not name.startswith("language_model."):
        return "mtp" if name.startswith("mtp.") else "vision"
    module = base_name(name).removesuffix(".weight")
    return next(label for label, ends in _COMPONENTS.items() if module.endswith(ends))
