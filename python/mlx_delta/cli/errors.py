"""How every command fails: one red line on stderr and exit 1 for what the user can mend, a traceback for our bugs.

Ctrl-C exits with 130. When nobody reads the output any more (``| head``) a command ends at once and says nothing, with
141: what a shell shows for a program that SIGPIPE ended. The signal itself would leave half-written files behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import typer

from mlx_delta.cli.process import EndedBySignal
from mlx_delta.errors import ArgumentError, MissingPackageError, MlxDeltaError, OutputExistsError

if TYPE_CHECKING:
    from rich.console import Console

_BUG = (
    "This is a bug in mlx-delta {version}: please report it, with the lines above and the command that you gave, at "
    "https://github.com/mlx-delta/mlx-delta/issues"
)
# The machine's state, whatever the file: OSErrors with these are told in a line even when they name none.
_NO_BUG = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBADF}
_NO_MEMORY = re.compile(r"unable to allocate|insufficient memory|out of memory", re.IGNORECASE)  # MLX's words
_ENVIRONMENT = "MLX_DELTA_"  # variables whose values the extension refuses, by their names
BROKEN_PIPE = 141
_debug = False


class UsageError(MlxDeltaError):
    """What a command was given is not what it takes."""


def show_tracebacks(show: bool) -> None:
    """``--debug``: a callback of the option, wherever it stands."""
    global _debug
    _debug = _debug or show


@contextmanager
def reported_errors(flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """A block whose exceptions end the command, told as said above. flags: an argument's name -> the option's."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        _silence_broken_streams()
        raise typer.Exit(BROKEN_PIPE) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        end = interruption(error)
        if isinstance(end, EndedBySignal):
            raise end from None
        if end is not None:
            raise typer.Exit(130) from None
        report(error, flags)
        _silence_broken_streams()
        raise typer.Exit(1) from None


def interruption(error: Exception) -> BaseException | None:
    """The Ctrl-C, or other signal, that a seeming bug has come of: a lock of Python's library that was about to wait,
    or an extension that was being imported, raises an error of its own then."""
    if not isinstance(error, MissingPackageError) and error_line(error) is not None:
        return None  # what a user is to know, be it of an end that did not go well
    found: list[BaseException] = [error]
    for each in found:
        if isinstance(each, (KeyboardInterrupt, EndedBySignal)):
            return each
        found += [one for one in (each.__cause__, each.__context__) if one is not None and one not in found]
    return None


def error_line(error: Exception, flags: Mapping[str, str] | None = None) -> str | None:
    """What to tell of an error that is not a bug of ours, in the options' names; None for a bug."""
    if isinstance(error, OutputExistsError):
        return f"{error} (--force replaces it)"
    if isinstance(error, ArgumentError) and flags and error.argument in flags:
        told = flags[error.argument] + str(error).removeprefix(error.argument)
        return re.sub(r"\b\w+_\w+\b", lambda other: flags.get(other[0], other[0]), told)
    if isinstance(error, MlxDeltaError) or (isinstance(error, ValueError) and str(error).startswith(_ENVIRONMENT)):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _NO_BUG):
        name = "standard output" if error.filename is None and _fails(sys.stdout) else error.filename
        return f"{error.strerror}" if name is None else f"{os.fsdecode(name)}: {error.strerror}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    return None


def report(error: Exception, flags: Mapping[str, str] | None = None, console: Console | None = None) -> None:
    """Tell of ``error`` on stderr, or on ``console``."""
    from mlx_delta.cli.console import one_line, stderr

    console = console or stderr()
    line = error_line(error, flags)
    with contextlib.suppress(OSError):  # nobody can be told
        if line is None or _debug:
            console.print("".join(traceback.format_exception(error)), end="", markup=False, soft_wrap=True)
        text = f"error: {one_line(line)}" if line is not None else _BUG.format(version=version("mlx-delta"))
        console.print(text, style="red", markup=False, soft_wrap=True)


def _fails(stream: object) -> bool:
    try:
        stream.flush()  # type: ignore[attr-defined]
    except (OSError, ValueError):
        return True
    return False


def _silence_broken_streams() -> None:
    """What they still hold goes nowhere, or Python would complain of it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if _fails(stream):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
