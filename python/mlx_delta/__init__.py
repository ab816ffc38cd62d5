"""mlx-delta: fast decoding of Qwen3.5 (gated-delta + attention) models with MLX.

Everything public (``__init__.pyi`` lists it) is imported on first use, so that ``mlx-delta --help`` stays instant.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any

import lazy_loader

_public, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # slow

        return metadata.version("mlx-delta")
    if name == "_core":
        _check_mlx()
        return import_module("mlx_delta._core")
    return _public(name)


def _check_mlx() -> None:
    """Another MLX than the extension was built for has other C++ symbols: say so before the linker does."""
    from importlib import metadata

    pins = [each.partition(";") for each in metadata.requires("mlx-delta") or () if re.match(r"mlx[\[=]", each)]
    pin = next((name for name, _, marker in pins if sys.platform in marker), "").strip()
    needed, found = pin.partition("==")[2], metadata.version("mlx")
    if needed and found != needed:
        from mlx_delta.errors import VersionError

        raise VersionError(f"mlx-delta needs mlx {needed}, found {found}: pip install '{pin}' mends it")
