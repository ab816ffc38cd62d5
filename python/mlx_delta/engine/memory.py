"""How much memory a model may use, where the user does not say, and what a sequence needs of it."""

from __future__ import annotations

import os

import mlx.core as mx

from mlx_delta.errors import ArgumentError

_PART = 8  # of the machine's memory is kept for prompts that come back: the rest is for weights, sequences and others


def prefix_bytes(given: int | None) -> int:
    """The limit of what is kept of sequences: as given, or an eighth of the machine's memory."""
    return machine_bytes() // _PART if given is None else given


def memory_bytes(given: int | None) -> int:
    """The limit of weights and sequences: as given, or what the system recommends for a GPU, or nine tenths of all."""
    if given is not None:
        return given
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return machine_bytes() // 10 * 9


def check_limits(**limits: int | None) -> None:
    """Of bytes, by their arguments' names, before anything is read or downloaded. Raises: ArgumentError."""
    for name, given in limits.items():
        if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
            raise ArgumentError(f"{name}: expected a number of bytes, found {given!r}")
        if given is not None and given < 0:
            raise ArgumentError(f"{name}: expected at least 0, found {given}")


def machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
