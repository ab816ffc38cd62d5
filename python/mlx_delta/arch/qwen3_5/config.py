"""config.json of Qwen3.5. Source: Hugging Face ``configuration_qwen3_5.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_delta.config import RopeConfig, TextConfig
from mlx_delta.errors import ConfigError

_INTEGERS = (
    "hidden_size",
    "intermediate_size",
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


def text_config(raw: Mapping[str, Any], origin: str) -> TextConfig:
    """The language model's dimensions, of a whole config.json or of its text model's alone.

    Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
    """
    text = raw.get("text_config", raw)
    tied = bool(text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)))
    dims: dict[str, Any] = {name: _positive_int(text, name, origin) for name in _INTEGERS}
    for many, few in (
        ("linear_num_value_heads", "linear_num_key_heads"),
        ("num_attention_heads", "num_key_value_heads"),
    ):
        if dims[many] % dims[few]:
            raise ConfigError(f"{origin}: {many}: expected a multiple of {few} = {dims[few]}, found {dims[many]}")
    if dims["linear_conv_kernel_dim"] != 4:
        raise ConfigError(f"{origin}: linear_conv_kernel_dim: expected 4, found {dims['linear_conv_kernel_dim']}")
    if text.get("num_experts"):
        raise ConfigError(f"{origin}: num_experts: expected a dense model, found {text['num_experts']} experts")
    if text.get("attention_bias"):
        raise ConfigError(f"{origin}: attention_bias: expected false, found true")
    eos, positions = text.get("eos_token_id"), "max_position_embeddings"
    return TextConfig(
        **dims,
        layer_types=_layer_types(text, origin),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope=_rope(text, dims["head_dim"], origin),
        tie_word_embeddings=tied,
        eos_token_id=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        max_position_embeddings=_positive_int(text, positions, origin) if text.get(positions) is not None else None,
    )


def _positive_int(text: Mapping[str, Any], name: str, origin: str) -> int:
    value = text.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{origin}: {name}: expected a positive integer, found {value!r}")
    return value


def _layer_types(text: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """The published configs name each layer; older ones give only the interval of the full-attention layers."""
    types = text.get("layer_types")
    if types is None:
        count = _positive_int(text, "num_hidden_layers", origin)
        interval = int(text.get("full_attention_interval", 4))
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(count))
    unknown = sorted(set(types) - {"linear_attention", "full_attention"})
    if unknown:
        raise ConfigError(f"{origin}: layer_types: expected linear_attention or full_attention, found {unknown[0]!r}")
    if len(types) != text.get("num_hidden_layers", len(types)):
        raise ConfigError(
            f"{origin}: layer_types: expected num_hidden_layers = {text['num_hidden_layers']} entries, "
            f"found {len(types)}"
        )
    return tuple(types)


def _rope(text: Mapping[str, Any], head_dim: int, origin: str) -> RopeConfig:
    params = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = params.get("rope_type", params.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{origin}: rope_type: expected 'default', found {kind!r}")
    factor = params.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
    dim = int(head_dim * factor)
    sections = tuple(int(n) for n in params.get("mrope_section", (dim // 2, 0, 0)))
    if len(sections) != 3 or sum(sections) != dim // 2:
        raise ConfigError(f"{origin}: mrope_section: expected three counts adding up to {dim // 2}, found {sections}")
    return RopeConfig(float(params.get("rope_theta", text.get("rope_theta", 1e7))), dim, sections)
