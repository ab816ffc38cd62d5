"""Lines from the keyboard: edited, remembered between runs, commands completed with Tab; all by readline."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_KEPT = 1000  # lines of history


class LineReader:
    """commands: what Tab completes at the start of a line. Without readline, lines come as the terminal sends them."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = sorted(commands)
        try:
            import readline
        except ImportError:  # a Python built without it
            self._readline: ModuleType | None = None
            return
        self._readline = readline
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        editline = "libedit" in (readline.__doc__ or "")  # macOS
        readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
        readline.set_auto_history(False)
        self._keep_history(readline, history_file())

    def read(self, prompt: str) -> str:
        """A line; one that ends in a backslash goes on in the next. Raises EOFError, KeyboardInterrupt."""
        line = input(prompt)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input(". ")
        if line.strip() and self._readline is not None:
            self._readline.add_history(line)
        return line

    def ask(self, prompt: str) -> str:
        """A reply to a question, typed after it was asked; it is not remembered. Raises as ``read``."""
        discard_typed()
        return input(prompt)

    def _complete(self, text: str, state: int) -> str | None:
        found = [command for command in self._commands if text.startswith("/") and command.startswith(text)]
        return found[state] if state < len(found) else None

    @staticmethod
    def _keep_history(readline: ModuleType, file: Path) -> None:
        with contextlib.suppress(OSError):  # none yet, or unreadable: a chat needs no history
            readline.read_history_file(file)
        readline.set_history_length(_KEPT)

        def write() -> None:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(file)

        atexit.register(write)


def discard_typed() -> None:
    """Forget what was typed or pasted before now: until nothing has come for a tenth of a second, or for two in all.

    A paste arrives in parts, and its lines must not answer a question that they were pasted before.
    """
    if not sys.stdin.isatty():
        return
    end = time.monotonic() + 2
    while time.monotonic() < end and select.select([sys.stdin], [], [], 0.1)[0]:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def history_file() -> Path:
    """Where XDG has it: $XDG_STATE_HOME/mlx-delta/chat_history, ~/.local/state by default."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mlx-delta" / "chat_history"
