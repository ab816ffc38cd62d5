"""mlx-delta: fast decoding of Qwen3.5 (gated-delta + attention) models with MLX.

Everything public is imported on first use, so that ``mlx-delta --help`` and ``mlx_delta.config`` stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_delta.chat.functions import function_tool as function_tool
    from mlx_delta.chat.request import ChatSettings as ChatSettings
    from mlx_delta.chat.tools import create_tool_definition as create_tool_definition
    from mlx_delta.config import ModelConfig as ModelConfig
    from mlx_delta.conversion.pipeline import convert as convert
    from mlx_delta.language_model import LanguageModel as LanguageModel
    from mlx_delta.loading import load_model as load_model

_PUBLIC = {
    "ChatSettings": "mlx_delta.chat.request",
    "LanguageModel": "mlx_delta.language_model",
    "ModelConfig": "mlx_delta.config",
    "convert": "mlx_delta.conversion.pipeline",
    "create_tool_definition": "mlx_delta.chat.tools",
    "function_tool": "mlx_delta.chat.functions",
    "load_model": "mlx_delta.loading",
}
__all__ = [
    "ChatSettings",
    "LanguageModel",
    "ModelConfig",
    "convert",
    "create_tool_definition",
    "function_tool",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mlx_delta' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
