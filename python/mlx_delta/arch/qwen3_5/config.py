"""config.json of Qwen3.5. Source: Hugging Face ``configuration_qwen3_5.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_delta.config import RopeConfig, TextConfig
from mlx_delta.errors import ConfigError
from mlx_delta.json_files import Section

_INTEGERS = (
    "hidden_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)

MOST = 1 << 24  # of a dimension: the largest published is the vocabulary, 248,320
_MOST_LAYERS = 4096


def text_config(raw: Mapping[str, Any], origin: str) -> TextConfig:
    """The language model's dimensions, of a whole config.json or of its text model's alone.

    Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
    """
    text = text_section(raw, origin)
    if text.values.get("num_experts"):
        raise ConfigError(
            f"{origin}: num_experts: expected a dense model, found {text.values['num_experts']!r:.20} experts"
        )
    return common_config(raw, origin, text.integer("intermediate_size", most=MOST))


def text_section(raw: Mapping[str, Any], origin: str) -> Section:
    """The text model's part of a config.json, which may be all of it."""
    whole = Section(raw, origin, ConfigError)
    return whole.section("text_config") if "text_config" in whole.values else whole


def common_config(raw: Mapping[str, Any], origin: str, intermediate_size: int) -> TextConfig:
    """``text_config`` whatever the feed-forward is."""
    whole, text = Section(raw, origin, ConfigError), text_section(raw, origin)
    dims: dict[str, Any] = {name: text.integer(name, most=MOST) for name in _INTEGERS}
    for many, few in (
        ("linear_num_value_heads", "linear_num_key_heads"),
        ("num_attention_heads", "num_key_value_heads"),
    ):
        if dims[many] % dims[few]:
            raise text.wrong(many, f"a multiple of {few} = {dims[few]}")
    if dims["linear_conv_kernel_dim"] != 4:
        raise text.wrong("linear_conv_kernel_dim", "4")
    if text.flag("attention_bias"):
        raise text.wrong("attention_bias", "false")
    if not text.flag("attn_output_gate", True):
        raise text.wrong("attn_output_gate", "true")
    if text.text("hidden_act", "silu") not in ("silu", "swish"):
        raise text.wrong("hidden_act", "'silu'")
    eos, positions = text.values.get("eos_token_id"), "max_position_embeddings"
    ids = text.array("eos_token_id", int) if isinstance(eos, list) else [text.integer("eos_token_id", 0, least=0)]
    return TextConfig(
        **dims,
        intermediate_size=intermediate_size,
        layer_types=_layer_types(text),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        rope=_rope(text, dims["head_dim"]),
        tie_word_embeddings=text.flag("tie_word_embeddings") or whole.flag("tie_word_embeddings"),
        eos_token_id=tuple(ids or ()) if eos is not None else (),
        max_position_embeddings=text.integer(positions) if positions in text.values else None,
    )


def _layer_types(text: Section) -> tuple[str, ...]:
    """The published configs name each layer; older ones give only the interval of the full-attention layers."""
    types = text.array("layer_types", str)
    count = text.integer("num_hidden_layers", None if types is None else len(types), most=_MOST_LAYERS)
    if types is None:
        interval = text.integer("full_attention_interval", 4)
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(count))
    unknown = sorted(set(types) - {"linear_attention", "full_attention"})
    if unknown:
        raise ConfigError(
            f"{text.origin}: layer_types: expected linear_attention or full_attention, found {unknown[0]!r:.80}"
        )
    if len(types) != count:
        raise ConfigError(
            f"{text.origin}: layer_types: expected num_hidden_layers = {count} entries, found {len(types)}"
        )
    return tuple(types)


def _rope(text: Section, head_dim: int) -> RopeConfig:
    params = text.section("rope_parameters" if "rope_parameters" in text.values else "rope_scaling")
    kind = "rope_type" if "rope_type" in params.values else "type"
    if params.text(kind, "default") != "default":
        raise params.wrong(kind, "'default'")
    factor = params.number("partial_rotary_factor", text.number("partial_rotary_factor", 0.25, most=1), most=1)
    dim = int(head_dim * factor)
    if dim < 2 or dim % 2:
        where = params if "partial_rotary_factor" in params.values else text
        raise where.wrong("partial_rotary_factor", f"an even number of head_dim = {head_dim} values to rotate")
    sections = params.array("mrope_section", int) or [dim // 2, 0, 0]
    if len(sections) != 3 or min(sections) < 0 or sum(sections) != dim // 2:
        raise params.wrong("mrope_section", f"three counts adding up to {dim // 2}")
    theta = params.number("rope_theta", text.number("rope_theta", 1e7))
    return RopeConfig(theta, dim, (sections[0], sections[1], sections[2]))
