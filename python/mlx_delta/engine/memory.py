"""How much memory a model may use besides its weights, where the user does not say."""

from __future__ import annotations

import os

from mlx_delta.errors import ArgumentError

_PART = 8  # of the machine's memory is kept for prompts that come back: the rest is for weights, sequences and others


def prefix_bytes(given: int | None) -> int:
    """The limit of what is kept of sequences: as given, or an eighth of the machine's memory."""
    if given is None:
        return machine_bytes() // _PART
    if given < 0:
        raise ArgumentError(f"prefix_cache_bytes: expected at least 0, found {given}")
    return given


def machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
