"""Sampling parameters as the Qwen3.5 model cards recommend them, by mode and size of the model.

The cards differ by size only without thinking: 0.8B and 2B take more randomness and a stronger presence penalty.
"""

from __future__ import annotations

from mlx_delta.arch.base import Presets
from mlx_delta.config import TextConfig

_SMALL = 2048  # hidden size up to which a model is one of the small ones (0.8B: 1024, 2B: 2048, 4B: 2560)
_THINKING = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5}
_CODING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 0.0}
_INSTRUCT = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5}
_SMALL_INSTRUCT = {"temperature": 1.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "presence_penalty": 2.0}


def presets(config: TextConfig) -> Presets:
    small = config.hidden_size <= _SMALL and config.experts is None  # the narrowest with experts are as wide as the 2B
    instruct = _SMALL_INSTRUCT if small else _INSTRUCT
    return {"thinking": _THINKING, "coding": _CODING, "instruct": instruct}
