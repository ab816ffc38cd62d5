"""The one place that maps a checkpoint's names and values to MLX's canonical convention.

Names      official (``model.language_model.*``, ``model.visual.*``, ``lm_head.*``, ``mtp.*``), text-only Hugging Face
           (``model.*``) and MLX (``language_model.*``, ``vision_tower.*``) -> MLX, quantized companions included.
conv1d     [C, 1, 4] -> [C, 4, 1].
norms      Hugging Face stores w and applies 1 + w, MLX stores 1 + w: computed in float32, which is exact, whereas
           rounding 1 + w to bfloat16 loses 2e-3. The gated norm (``linear_attn.norm``) and the vision norms are
           final in both.
patches    vision ``patch_embed.proj.weight`` [O, C, T, P, P] -> [O, T, P, P, C].

Whether a norm still lacks its 1 is settled by each key's own prefix: Hugging Face's names say zero-centred,
``language_model.`` says final. The layout of the convolutions under the same prefix overrules the names, for it cannot
lie: a save that renamed without converting still has [C, 1, 4], and one that converted without renaming has [C, 4, 1].
The two are never ambiguous, as the kernel is 4 and the other axis 1 whatever C is. ``mtp.`` has no convolutions and
no name of its own in MLX, so it follows the text model; in a source without one, ``mtp.`` is Hugging Face's, and
``language_model.mtp.`` MLX's. The values are not looked at: means of trained zero-centred
k_norm weights lie where those of final weights do, so no threshold tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_delta.checkpoint.source import Source, TensorInfo
from mlx_delta.checkpoint.tensors import Shapes, Tensor, base_name
from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.json_files import Section

# Source prefix -> canonical prefix. The first that fits counts: "model." is text-only Hugging Face's, so it is last.
_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "vision_tower."),
    ("language_model.model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.mtp.", "mtp."),
    ("vision_tower.", "vision_tower."),
    ("mtp.", "mtp."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_HUGGING_FACE = ("model.language_model.", "model.")
_SHIFTED_NORM = re.compile(
    r"(language_model\.model|mtp)\."
    r"(norm|pre_fc_norm_(embedding|hidden)|layers\.\d+\.(input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm))"
    r"\.weight"
)
_CONV = re.compile(r"language_model\.model\.layers\.\d+\.linear_attn\.conv1d\.weight")
_PATCHES = "vision_tower.patch_embed.proj.weight"


def canonical_tensors(source: Source, config: ModelConfig, shapes: Shapes) -> dict[str, Tensor]:
    """Every tensor of ``source`` under its canonical name, loading lazily to its canonical value.

    shapes: those of the text model. ``lm_head`` is left out where the config ties it to the embedding.
    Raises: CheckpointError for a name that is no tensor of this model, for two names of one tensor, and for
    convolutions of an unknown or mixed layout.
    """
    shift = _needs_shift(source, config)
    result: dict[str, Tensor] = {}
    for source_name, info in source.tensors.items():
        prefix, name = _canonical_name(source_name, source.path)
        if config.text.tie_word_embeddings and name.startswith("language_model.lm_head."):
            continue
        if name.startswith("language_model.") and base_name(name) not in shapes:
            raise CheckpointError(f"{info.file}: expected a tensor of this config's model, found {source_name}")
        if name in result:
            raise CheckpointError(f"{info.file}: expected one {name}, found {result[name].source_name}, {source_name}")
        result[name] = _tensor(source, config, name, source_name, info, shift[prefix])
    return result


def canonical_name(source_name: str) -> str | None:
    """The canonical form of a tensor's name in any of the namings, or None for a name of none of them."""
    return next((name for _, name in _matches(source_name)), None)


def _matches(source_name: str) -> Iterator[tuple[str, str]]:
    for prefix, canonical in _PREFIXES:
        if source_name.startswith(prefix):
            yield prefix, canonical + source_name.removeprefix(prefix)


def _canonical_name(source_name: str, origin: Path) -> tuple[str, str]:
    """The source prefix of a name, and its canonical form."""
    for found in _matches(source_name):
        return found
    expected = ", ".join(f"{prefix}*" for prefix, _ in _PREFIXES)
    raise CheckpointError(f"{origin}: expected tensors named {expected}, found {source_name}")


def _needs_shift(source: Source, config: ModelConfig) -> dict[str, bool]:
    """Source prefix -> its norms are zero-centred. The layout of the convolutions overrules the prefix."""
    names = [(*_canonical_name(name, source.path), info) for name, info in source.tensors.items()]
    text = {prefix for prefix, name, _ in names if name.startswith("language_model.model.")}
    shift = {prefix: prefix in _HUGGING_FACE for prefix, _ in _PREFIXES}
    for family in text:
        layouts = {
            _is_unconverted(config, name, info)
            for prefix, name, info in names
            if prefix == family and _CONV.fullmatch(name)
        }
        if len(layouts) > 1:
            raise CheckpointError(
                f"{source.path}: {family}*.conv1d.weight: expected one layout, found [C, 1, 4] and [C, 4, 1]"
            )
        shift[family] = next(iter(layouts), shift[family])
    for prefix, canonical in _PREFIXES:
        if canonical == "mtp.":
            shift[prefix] = any(shift[family] for family in text) if text else prefix == canonical
    return shift


def _is_unconverted(config: ModelConfig, name: str, info: TensorInfo) -> bool:
    channels, kernel = config.text.conv_dim, config.text.linear_conv_kernel_dim
    if info.shape not in ((channels, 1, kernel), (channels, kernel, 1)):
        raise CheckpointError(
            f"{info.file}: {name}: expected [{channels}, 1, {kernel}] or [{channels}, {kernel}, 1], "
            f"found {list(info.shape)}"
        )
    return info.shape[2] == kernel


def _tensor(
    source: Source, config: ModelConfig, name: str, source_name: str, info: TensorInfo, shifted: bool
) -> Tensor:
    def load() -> mx.array:
        return source.load(source_name)

    if shifted and _SHIFTED_NORM.fullmatch(name):
        return Tensor(name, source_name, info.shape, mx.float32, lambda: load().astype(mx.float32) + 1)
    if _CONV.fullmatch(name):
        shape = (info.shape[0], config.text.linear_conv_kernel_dim, 1)
        return Tensor(name, source_name, shape, info.dtype, lambda: load().reshape(shape))
    if name == _PATCHES and _is_channel_first(config.raw, info.shape, source_name):
        out, channels, *patch = info.shape
        return Tensor(name, source_name, (out, *patch, channels), info.dtype, lambda: load().transpose(0, 2, 3, 4, 1))
    part = getattr(source, "load_part", None)  # of sources whose tensors lie in a file as they are
    return Tensor(name, source_name, info.shape, info.dtype, load, partial(part, source_name) if part else None)


def _is_channel_first(raw: Mapping[str, Any], shape: tuple[int, ...], source_name: str) -> bool:
    """Hugging Face's layout of the patch embedding; the name settles dimensions that fit both."""
    vision = Section(raw, "config.json", ConfigError).section("vision_config")
    channels, time, side = (
        vision.integer(key, default)
        for key, default in (("in_channels", 3), ("temporal_patch_size", 2), ("patch_size", 16))
    )
    first, last = shape[1:] == (channels, time, side, side), shape[1:] == (time, side, side, channels)
    return first and (not last or source_name.startswith("model.visual."))
