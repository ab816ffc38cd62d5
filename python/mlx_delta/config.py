"""What a checkpoint's config.json says, as frozen dataclasses. An architecture reads it: ``arch.registry.read_config``.

Names follow the op conventions of ARCHITECTURE.md: Hk/Hv key/value heads and Dk/Dv head dims of the gated-delta layers,
Hq query heads of the attention layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_delta.errors import ConfigError


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
    """The language model's dimensions. model_type: as ``ModelConfig`` has it."""

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
    model_type: str = ""
    max_position_embeddings: int | None = None  # None: the file does not say

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


def quantization_of(raw: Mapping[str, Any], origin: str) -> dict[str, Quantization]:
    """config.json's ``quantization`` as mlx-lm writes it: defaults, overrides by module; false: a module left alone."""
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
