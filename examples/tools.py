"""Tools for ``mlx-delta chat --tools examples/tools.py``: a typed function's signature and docstring are its schema."""

from __future__ import annotations


def add(a: int, b: int) -> int:
    """Add two integers

    Args:
        a: First
        b: Second
    """
    return a + b


def set_alarm(time: str) -> str:
    """Set an alarm

    Args:
        time: HH:MM
    """
    hour, minute = (int(part) for part in time.split(":"))
    return f"alarm set for {hour:02}:{minute:02}"
