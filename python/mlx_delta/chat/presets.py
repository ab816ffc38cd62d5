"""Sampling parameters: what was given, over a preset of the architecture's, over what the checkpoint's files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_delta.arch.registry import architecture_of
from mlx_delta.config import TextConfig
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.errors import ArgumentError
from mlx_delta.options import SAMPLING, GenerationOptions
from mlx_delta.text.tokenizer import GenerationDefaults

PRESETS = ("auto", "thinking", "coding", "instruct", "checkpoint")


def explicit_sampling(given: GenerationOptions) -> dict[str, Any]:
    """The sampling options that were given. Raises: ArgumentError naming the argument."""
    if given.get("preset", "auto") not in PRESETS:
        raise ArgumentError(f"preset: expected one of {', '.join(PRESETS)}, found {given['preset']!r}")
    explicit: dict[str, Any] = {name: value for name, value in given.items() if name in SAMPLING}
    SamplingParams(**explicit, seed=given.get("seed"))
    return explicit


def sampling(
    preset: str, given: GenerationOptions, *, thinking: bool, config: TextConfig, defaults: GenerationDefaults
) -> SamplingParams:
    """What was given, over the preset, over what the checkpoint's generation_config.json says, over greedy.

    preset: "auto" is "thinking" or "instruct", as the prompt has it: a checkpoint's file knows one set of numbers for
    both. "coding" is for precise work with thinking. "checkpoint" leaves it to generation_config.json, and so does
    "auto" where that file says ``do_sample: false``, which asks for greedy decoding, and no temperature is given.
    A given temperature of 0 asks for plain greedy decoding, so then only what was given counts.
    """
    explicit, seed = explicit_sampling(given), given.get("seed")
    if explicit.get("temperature") == 0:
        return SamplingParams(**explicit, seed=seed)
    if preset == "auto" and defaults.do_sample is False and "temperature" not in explicit:
        preset = "checkpoint"
    if preset == "auto":
        preset = "thinking" if thinking else "instruct"
    chosen: Mapping[str, float] = {} if preset == "checkpoint" else architecture_of(config).presets(config)[preset]
    stored = {name: getattr(defaults, name) for name in SAMPLING} if defaults.do_sample else {}
    stored = {name: value for name, value in stored.items() if value is not None}
    return SamplingParams(**{**stored, **chosen, **explicit}, seed=seed)
