"""How every command fails: one red line on stderr and exit 1, or exit 130 after Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def reported_errors() -> Iterator[None]:
    """A block, or (as a decorator) a command, whose ValueError or OSError becomes one line instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
