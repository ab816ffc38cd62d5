"""What a checkpoint's config.json says, as frozen dataclasses. An architecture reads it: ``arch.registry.read_config``.

Names follow the op conventions of ARCHITECTURE.md: Hk/Hv key/value heads and Dk/Dv head dims of the gated-delta layers,
Hq query heads of the attention layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_delta.errors import ConfigError
from mlx_delta.json_files import Section
from mlx_delta.paths import expanded


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
class ExpertsConfig:
    """A mixture of experts in place of the MLP: of ``count`` of them each token takes ``chosen``, and a shared one."""

    count: int  # E
    chosen: int  # k
    shared_size: int  # I of the shared expert


@dataclass(frozen=True)
class TextConfig:
    """The language model's dimensions. model_type: as ``ModelConfig`` has it.

    intermediate_size: I of the MLP; of each expert where there are ``experts``.
    """

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
    experts: ExpertsConfig | None = None

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

    @classmethod
    def from_dir(cls, path: Path | str) -> ModelConfig:
        """That of the model in directory ``path``, read from its config.json.

        Raises: ConfigError naming the file, the key, what was expected and what was found.
        """
        # By name, for the module is above this one: which keys there are is an architecture's affair.
        found: ModelConfig = import_module("mlx_delta.arch.registry").read_config(expanded(path))
        return found

    def module_quantization(self, module: str) -> Quantization | None:
        """The width of a module that has scales: its own entry, or the default, or None."""
        return self.quantization.get(module, self.quantization.get(""))


_METHODS = ("mlx", "affine", "auto-round")  # AutoRound's builds for MLX are of its form
_ADVICE = "take an affine build, or the unquantized checkpoint and `mlx-delta convert`"


def quantization_of(
    raw: Mapping[str, Any], origin: str, canonical_name: Callable[[str], str | None]
) -> dict[str, Quantization]:
    """config.json's ``quantization`` as mlx-lm writes it: defaults, and overrides by module: widths, or false for one
    that is left alone. What an override does not say, or says as null, is the default's.

    canonical_name: of a tensor's name, for modules are named as the file's tensors are, whichever naming that is.
    An override outside the language model may be anything, for none of those modules runs: what is not of MLX's affine
    form is left out.
    Raises: ConfigError naming ``origin``, the module, what was expected and what was found.
    """
    top = Section(raw, origin, ConfigError)
    key = next((key for key in ("quantization", "quantization_config") if key in top.values), None)
    if key is None:
        return {}
    section = top.section(key, f"{origin}: {key}")
    method = section.values.get("quant_method")
    if key == "quantization_config" and scaled_block(raw) is not None:
        return {}
    # Beside MLX's own name for it, which such a file has too when MLX wrote it, the method is what it was made of.
    if key == "quantization_config" and method is not None and method not in _METHODS:
        values = (section.values.get(key) for key in ("quant_method", "format", "quant_algo"))  # "modelopt", "NVFP4"
        shown = ", ".join(each for each in values if isinstance(each, str)) or repr(method)
        raise ConfigError(f"{section.origin}: quant_method: expected MLX's affine form, found {shown:.80}: {_ADVICE}")
    if "bits" not in section.values and "mode" not in section.values:
        raise top.wrong(key, "MLX's affine form with bits and group_size")
    result = {"": _one_quantization(section, None, 64)}
    named: dict[str, str] = {}
    for name, value in section.values.items():
        module = (canonical_name(f"{name}.weight") or "").removesuffix(".weight")
        if not module or isinstance(value, bool):
            continue
        default = result[""]
        try:
            override = section.section(name, f"{section.origin}: {name}")
            found = _one_quantization(override, default.bits, default.group_size)
        except ConfigError:
            if module.startswith("language_model."):
                raise
            continue
        if result.get(module, found) != found:
            raise section.wrong(name, f"what {named[module]} says of the same module")
        result[module], named[module] = found, name
    return result


# What ``checkpoint.scaled`` reads: forms of floats and scales alone, which may be mixed.
_SCALED = {
    "fp8": ("quant_method", ("fp8",)),
    "modelopt": ("quant_algo", ("FP8", "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION")),
    "compressed-tensors": (
        "format",
        ("float-quantized", "naive-quantized", "nvfp4-pack-quantized", "mixed-precision"),
    ),
}


def scaled_block(raw: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of a checkpoint in FP8 or NVFP4, which is read as bfloat16: the blocks that one scale may be for; None for any
    other. Official FP8 names them; 128 x 128 is all that others have."""
    section = raw.get("quantization_config")
    if not isinstance(section, Mapping) or "quantization" in raw:
        return None
    method = section.get("quant_method")
    key, known = _SCALED.get(method if isinstance(method, str) else "", ("", ()))
    if section.get(key) not in known or section.get("transform_config"):  # weights that were rotated
        return None
    block = section.get("weight_block_size", None if method == "fp8" else [128, 128])
    sound = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    return (block[0], block[1]) if isinstance(block, list) and sound else None


def _one_quantization(section: Section, bits: int | None, group_size: int) -> Quantization:
    mode = section.text("mode", "affine")
    if mode != "affine":
        raise ConfigError(f"{section.origin}: expected mode 'affine', found {mode!r:.80}: {_ADVICE}")
    found = Quantization(section.integer("bits", bits), section.integer("group_size", group_size))
    if found.bits not in (2, 3, 4, 5, 6, 8) or found.group_size not in (32, 64, 128):
        raise ConfigError(
            f"{section.origin}: expected bits 2, 3, 4, 5, 6 or 8 and group_size 32, 64 or 128, "
            f"found {found.bits} and {found.group_size}"
        )
    return found
