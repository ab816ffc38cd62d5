"""The tiny checkpoint and the pictures that come with the package."""

from __future__ import annotations

from pathlib import Path

from mlx_delta.errors import CheckpointError


def example_checkpoint() -> Path:
    """Its directory: installed beside the extension."""
    return _example("tiny")


def example_picture(name: str) -> Path:
    """japan: a flag; button: a thing to search for."""
    return _example(f"pictures/{name}.png")


def _example(name: str) -> Path:
    from mlx_delta import _core

    found = Path(_core.__file__).parent / "examples" / name
    if not found.exists():
        raise CheckpointError(f"{found}: expected what comes with the package, found nothing: reinstall mlx-delta")
    return found
