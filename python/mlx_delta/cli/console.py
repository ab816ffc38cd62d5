"""The two consoles, and text from elsewhere made fit to be shown."""

from __future__ import annotations

import sys

from rich.console import Console

# What a terminal would obey: names in files, and a model's output, are shown whatever they are.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Left to ``reported_errors``, so that every command ends in the same way."""
        raise  # rich calls this where it handles the BrokenPipeError


def stdout() -> Console:
    """For results."""
    return _Console(highlight=False)


def stderr() -> Console:
    """For progress, warnings and errors."""
    return _Console(stderr=True, highlight=False)


def warn(text: str) -> None:
    """One yellow line on stderr."""
    stderr().print(f"warning: {one_line(text)}", style="yellow", markup=False, soft_wrap=True)


def shown(text: str) -> str:
    """``text`` without the characters that would steer a terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """``shown``, on one line."""
    return shown(" ".join(text.split("\n")))


def is_terminal() -> bool:
    """Whether stderr, where progress is shown, is one."""
    return sys.stderr.isatty()
