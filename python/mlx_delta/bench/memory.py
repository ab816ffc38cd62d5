"""The most memory that this process held since a moment of one's choice."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import mlx.core as mx

_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Count from now on."""
    mx.clear_cache()
    mx.reset_peak_memory()
    with suppress(OSError):
        _REFS.write_text("5")  # Linux: sets VmHWM to what is resident now


def peak_arrays() -> int:
    """Bytes of arrays, since the last reset."""
    return mx.get_peak_memory()


def peak_resident() -> int | None:
    """Bytes resident, of the whole process, since the last reset; None where the system does not tell (macOS)."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)
