"""The rows of tables about a Qwen3.5 model."""

from __future__ import annotations

from mlx_delta.arch.base import Components

COMPONENTS = Components(
    {
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
)
