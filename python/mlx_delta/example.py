"""The tiny checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path

from mlx_delta.errors import CheckpointError


def example_checkpoint() -> Path:
    """Its directory: installed beside the extension."""
    from mlx_delta import _core

    directory = Path(_core.__file__).parent / "examples" / "tiny"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: expected the example checkpoint, found nothing: reinstall mlx-delta")
    return directory
