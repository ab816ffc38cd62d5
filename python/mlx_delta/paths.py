"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path

from mlx_delta.errors import ArgumentError


def expanded(path: os.PathLike[str] | str, argument: str = "path") -> Path:
    """``path`` with a home directory for ``~`` or ``~user``, as every path that a user gives is taken.

    Of a user that is not there it is as it stands: nothing is there either, and that will be said.
    Raises: ArgumentError naming ``argument`` where it is no path (bytes are none).
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"{argument}: expected a path, found {path!r:.80}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
