"""Paths as users give them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path | str) -> Path:
    """``path`` with a home directory for ``~`` or ``~user``, as every path that a user gives is taken.

    Of a user that is not there it is as it stands: nothing is there either, and that will be said.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
