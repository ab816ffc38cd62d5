"""llama.cpp's names and head order for Qwen3.5 (``general.architecture`` qwen35), mapped to the canonical ones.

GGUF stores value heads *tiled* (head i belongs to key head i % Hk), Hugging Face and MLX *grouped* (i // (Hv / Hk)).
Source: llama.cpp ``convert_hf_to_gguf.py`` and ``gguf-py/gguf/tensor_mapping.py``.
"""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np

from mlx_delta.config import TextConfig

_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt": "linear_attn.dt_bias",  # Ollama's
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    # Of a model with experts.
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_exps.weight": "mlp.switch_mlp.gate_proj.weight",
    "ffn_up_exps.weight": "mlp.switch_mlp.up_proj.weight",
    "ffn_down_exps.weight": "mlp.switch_mlp.down_proj.weight",
    "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",  # fused, as Hugging Face has it
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}
_GLOBAL = {
    "token_embd.weight": "language_model.model.embed_tokens.weight",
    "output_norm.weight": "language_model.model.norm.weight",
    "output.weight": "language_model.lm_head.weight",
}
# The MTP head's blocks have those of an attention layer, and in the first one what the head has once.
_MTP = {
    "nextn.eh_proj.weight": "mtp.fc.weight",
    "nextn.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "nextn.hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "nextn.shared_head_norm.weight": "mtp.norm.weight",
}
_INVERSE = {canonical: name for names in (_BLOCK, _GLOBAL) for name, canonical in names.items()}


def canonical_from_gguf(name: str, num_layers: int) -> str | None:
    """``blk.3.attn_q.weight`` -> ``language_model.model.layers.3.self_attn.q_proj.weight``.

    Blocks from ``num_layers`` on are the MTP head's, ``mtp.layers.0`` and so on. None for a name of no tensor.
    """
    block = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if block is None:
        return _GLOBAL.get(name)
    index, suffix = int(block[1]), _BLOCK.get(block[2])
    if index >= num_layers:
        return f"mtp.layers.{index - num_layers}.{suffix}" if suffix else _MTP.get(block[2])
    return f"language_model.model.layers.{index}.{suffix}" if suffix else None


def gguf_from_canonical(name: str) -> str:
    """The inverse: ``blk.3.attn_q.weight``. Raises: KeyError for a name that llama.cpp has no tensor of."""
    block = re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", name)
    if block is None:
        return _INVERSE[name]
    return f"blk.{block[1]}.{_INVERSE[block[2]]}"


def grouped_from_tiled(values: np.ndarray, text: TextConfig) -> np.ndarray:
    """Reorder the last axis [Hv * n] from tiled value heads (j * Hk + hk) to grouped ones (hk * Hv/Hk + j)."""
    heads, keys = text.linear_num_value_heads, text.linear_num_key_heads
    tiled = values.reshape(*values.shape[:-1], heads // keys, keys, -1)
    return np.ascontiguousarray(tiled.swapaxes(-3, -2)).reshape(values.shape)


def tiled_from_grouped(values: np.ndarray, text: TextConfig) -> np.ndarray:
    """The inverse of ``grouped_from_tiled``."""
    heads, keys = text.linear_num_value_heads, text.linear_num_key_heads
    grouped = values.reshape(*values.shape[:-1], keys, heads // keys, -1)
    return np.ascontiguousarray(grouped.swapaxes(-3, -2)).reshape(values.shape)


def is_left_out(name: str, num_layers: int) -> bool:
    """A tensor that text generation has no use for, where it stands in the same file.

    The MTP head, which GGUF has as one more block (or, in some files, under ``nextn`` or ``mtp``), and in Ollama's
    files the vision tower and its projector, which llama.cpp keeps apart.
    """
    block = re.match(r"blk\.(\d+)\.", name)
    return int(block[1]) >= num_layers if block else name.startswith(("nextn.", "mtp.", "v.", "mm."))


def regrouped(canonical: str, array: mx.array, text: TextConfig) -> mx.array:
    """``array``, stored by GGUF for the tensor ``canonical``, with its value heads in grouped order.

    Value heads run along the columns of out_proj, the last ``value_dim`` rows of in_proj_qkv and channels of conv1d,
    and all rows of the other tensors of a gated-delta layer, but not of its norm, which they share.
    """
    if canonical.endswith(".out_proj.weight"):
        return _regrouped_rows(array.T, text).T
    if canonical.endswith((".in_proj_qkv.weight", ".conv1d.weight")):
        keys = text.conv_dim - text.value_dim
        return mx.concatenate([array[:keys], _regrouped_rows(array[keys:], text)])
    if canonical.endswith((".in_proj_z.weight", ".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")):
        return _regrouped_rows(array, text)
    return array


def _regrouped_rows(array: mx.array, text: TextConfig) -> mx.array:
    """Rows [ratio, Hk, n] -> [Hk, ratio, n]. A wrong number of rows is left for the check of shapes to name."""
    heads, keys = text.linear_num_value_heads, text.linear_num_key_heads
    if array.shape[0] == 0 or array.shape[0] % heads:
        return array
    tiled = array.reshape(heads // keys, keys, array.shape[0] // heads, *array.shape[1:])
    return tiled.swapaxes(0, 1).reshape(array.shape)
