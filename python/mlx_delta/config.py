"""What a checkpoint's config.json says, as frozen dataclasses; imports nothing of ours.

Source: Hugging Face ``configuration_qwen3_5.py``. Names follow the op conventions of ARCHITECTURE.md:
Hk/Hv key/value heads and Dk/Dv head dims of the gated-delta layers, Hq query heads of the attention layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_delta.errors import ConfigError
from mlx_delta.json_files import read_json

MODEL_TYPES = ("qwen3_5", "qwen3_5_text")


@dataclass(frozen=True)
class Quantization:
    """Width and group of one affine-quantized matrix: w = scale * q + bias, per ``group_size`` values along K."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of a head's first ``dim`` values; ``sections``: frequencies of the T, H and W positions."""

    theta: float
    dim: int
    sections: tuple[int, int, int]


@dataclass(frozen=True)
class TextConfig:
    """The language model's dimensions."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    layer_types: tuple[str, ...]  # "linear_attention" | "full_attention"
    num_attention_heads: int  # Hq
    num_key_value_heads: int  # Hkv
    head_dim: int  # D
    linear_num_key_heads: int  # Hk
    linear_num_value_heads: int  # Hv
    linear_key_head_dim: int  # Dk
    linear_value_head_dim: int  # Dv
    linear_conv_kernel_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    eos_token_id: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: q, k and v of a gated-delta layer, 2 Hk Dk + Hv Dv."""
        return 2 * self.linear_num_key_heads * self.linear_key_head_dim + self.value_dim

    @property
    def value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: its text model, and how its matrices are quantized (empty: not at all).

    ``quantization`` maps a module's name ("language_model.model.layers.0.mlp.up_proj") to its width; the key ""
    holds the default, which covers every module that has scales and no entry of its own.
    """

    model_type: str
    text: TextConfig
    quantization: Mapping[str, Quantization]
    raw: Mapping[str, Any]

    def module_quantization(self, module: str) -> Quantization | None:
        """The width of a module that has scales: its own entry, or the default, or None."""
        return self.quantization.get(module, self.quantization.get(""))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
        """Parse a Hugging Face (or MLX-converted) config; ``origin`` names the file in errors.

        Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
        """
        model_type = raw.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"{origin}: model_type: expected one of {', '.join(MODEL_TYPES)}, found {model_type!r}")
        text = raw.get("text_config", raw)
        tied = text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
        return cls(model_type, _text_config(text, bool(tied), origin), _quantization(raw, origin), dict(raw))

    @classmethod
    def from_dir(cls, path: Path) -> ModelConfig:
        """Read ``path/config.json``. Raises ConfigError when it is not there or not valid."""
        file = path / "config.json"
        if not path.is_dir():
            raise ConfigError(f"{path}: expected a model directory, found {'a file' if path.exists() else 'nothing'}")
        if not file.is_file():
            raise ConfigError(f"{file}: expected a model's config.json, found nothing")
        return cls.from_dict(read_json(file, ConfigError), str(file))


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


def _text_config(text: Mapping[str, Any], tied: bool, origin: str) -> TextConfig:
    dims = {name: _positive_int(text, name, origin) for name in _INTEGERS}
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
    eos = text.get("eos_token_id")
    return TextConfig(
        **dims,
        layer_types=_layer_types(text, origin),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope=_rope(text, dims["head_dim"], origin),
        tie_word_embeddings=tied,
        eos_token_id=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
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


def _quantization(raw: Mapping[str, Any], origin: str) -> dict[str, Quantization]:
    """``quantization`` as mlx-lm writes it: defaults beside per-module overrides; false marks a module left alone."""
    section = raw.get("quantization", raw.get("quantization_config"))
    if section is None:
        return {}
    if not isinstance(section, dict) or "bits" not in section:
        raise ConfigError(
            f"{origin}: quantization: expected MLX's affine form with bits and group_size, found {section!r:.80}"
        )
    result = {"": _one_quantization(section, "quantization", origin)}
    for name, value in section.items():
        if isinstance(value, dict):
            result[name] = _one_quantization(value, name, origin)
    return result


def _one_quantization(value: Mapping[str, Any], name: str, origin: str) -> Quantization:
    mode = value.get("mode", "affine")
    if mode != "affine":
        raise ConfigError(f"{origin}: {name}: expected mode 'affine', found {mode!r}")
    found = Quantization(int(value.get("bits", 0)), int(value.get("group_size", 64)))
    if found.bits not in (2, 3, 4, 5, 6, 8) or found.group_size not in (32, 64, 128):
        raise ConfigError(
            f"{origin}: {name}: expected bits 2, 3, 4, 5, 6 or 8 and group_size 32, 64 or 128, "
            f"found {found.bits} and {found.group_size}"
        )
    return found
