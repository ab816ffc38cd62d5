"""How every command fails: one red line on stderr and exit 1, or exit 130 after Ctrl-C.

When nobody reads the output any more (``| head``) it ends at once and says nothing, with 141: what a shell shows for a
program that SIGPIPE ended (a table of rich: with 1). The signal itself would leave half-written files behind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def reported_errors() -> Iterator[None]:
    """A block, or (as a decorator) a command, whose ValueError or OSError becomes one line instead of a traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed when the process ends
        raise typer.Exit(141) from None
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
