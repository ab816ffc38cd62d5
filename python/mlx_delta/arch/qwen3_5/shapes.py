"""Every tensor of a Qwen3.5 model, by canonical name, with its shape."""

from __future__ import annotations

from collections.abc import Callable

from mlx_delta.arch.qwen3_5.config import text_section
from mlx_delta.checkpoint.tensors import Shapes
from mlx_delta.config import ModelConfig, TextConfig

_MTP_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")


def mlp_shapes(text: TextConfig) -> Shapes:
    hidden, inner = text.hidden_size, text.intermediate_size
    return {
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def text_shapes(config: ModelConfig, feed_forward: Callable[[TextConfig], Shapes] = mlp_shapes) -> Shapes:
    """Every tensor of the unquantized text model, in the order a converted file has them.

    feed_forward: the tensors of what follows a layer's mixer, by their names within the layer.
    """
    text = config.text
    root = "language_model.model"
    shapes: Shapes = {f"{root}.embed_tokens.weight": (text.vocab_size, text.hidden_size)}
    for index, kind in enumerate(text.layer_types):
        mixer = _linear_shapes(text) if kind == "linear_attention" else _attention_shapes(text)
        for name, shape in {**mixer, **_norm_shapes(text), **feed_forward(text)}.items():
            shapes[f"{root}.layers.{index}.{name}"] = shape
    shapes[f"{root}.norm.weight"] = (text.hidden_size,)
    if not text.tie_word_embeddings:
        shapes["language_model.lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def mtp_shapes(config: ModelConfig, feed_forward: Callable[[TextConfig], Shapes] = mlp_shapes) -> Shapes:
    """Every tensor of the head that predicts the token after next: attention layers on [embedding, hidden state].

    None where config.json has no ``mtp_num_hidden_layers``.
    """
    text, raw = config.text, text_section(config.raw, "config.json")
    shapes: Shapes = {}
    for index in range(raw.integer("mtp_num_hidden_layers", 0, least=0, most=64)):
        for name, shape in {**_attention_shapes(text), **_norm_shapes(text), **feed_forward(text)}.items():
            shapes[f"mtp.layers.{index}.{name}"] = shape
    if shapes:
        shapes["mtp.fc.weight"] = (text.hidden_size, 2 * text.hidden_size)
        shapes |= {f"mtp.{norm}.weight": (text.hidden_size,) for norm in _MTP_NORMS}
    return shapes


def _norm_shapes(text: TextConfig) -> Shapes:
    return {
        "input_layernorm.weight": (text.hidden_size,),
        "post_attention_layernorm.weight": (text.hidden_size,),
    }


def _linear_shapes(text: TextConfig) -> Shapes:
    hidden, heads = text.hidden_size, text.linear_num_value_heads
    return {
        "linear_attn.in_proj_qkv.weight": (text.conv_dim, hidden),
        "linear_attn.in_proj_z.weight": (text.value_dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (text.conv_dim, text.linear_conv_kernel_dim, 1),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (text.linear_value_head_dim,),
        "linear_attn.out_proj.weight": (hidden, text.value_dim),
    }


def _attention_shapes(text: TextConfig) -> Shapes:
    """q_proj has twice the heads' rows: each head's query, then its output gate."""
    hidden, queries, keys = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    return {
        "self_attn.q_proj.weight": (2 * queries * text.head_dim, hidden),
        "self_attn.k_proj.weight": (keys * text.head_dim, hidden),
        "self_attn.v_proj.weight": (keys * text.head_dim, hidden),
        "self_attn.o_proj.weight": (hidden, queries * text.head_dim),
        "self_attn.q_norm.weight": (text.head_dim,),
        "self_attn.k_norm.weight": (text.head_dim,),
    }
