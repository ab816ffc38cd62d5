"""What the process owes its surroundings: closed streams, and signals that ask it to end."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mlx_delta.errors import TextError
from mlx_delta.json_files import decode_utf8


class EndedBySignal(BaseException):
    """SIGTERM or SIGHUP came. Not a SystemExit, which a tool of the user's may raise, and is no end then."""


@contextmanager
def orderly() -> Iterator[None]:
    """A block in which SIGTERM and SIGHUP end the program as exceptions do, so that what was half written is removed.

    Closed standard streams (``<&-``) are there, but cannot be read or written; a closed stderr takes everything.
    """
    _occupy_closed_streams()
    _show_everything()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _end)
    try:
        yield
    except EndedBySignal as end:
        sys.exit(128 + end.args[0])
    finally:
        # All is tidied up: from here on Ctrl-C may end what is left of the process without a word.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGHUP):  # must not disturb the tidying up
        signal.signal(again, signal.SIG_IGN)
    raise EndedBySignal(number)


def _occupy_closed_streams() -> None:
    """Descriptors 0 to 2 taken, so that no file we open gets one of them and is mistaken for a stream.

    As with any other program, what is read from a closed stdin or written to a closed stdout fails with EBADF.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "r")
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _show_everything() -> None:
    """What a stream's encoding lacks, and bytes of names that are no text, are written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def kept(state: Path) -> Iterator[None]:
    """A long run that keeps what is done in ``state``: says so when it is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, EndedBySignal):
        if state.is_file():
            print(f"{state} keeps what is done: the same command goes on from there", file=sys.stderr)
        raise


def read_stdin() -> str:
    """All of standard input. Raises: TextError when it is not UTF-8; OSError naming it."""
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard input") from error
    return decode_utf8(content, "standard input", TextError)
