"""``mlx-delta``: the commands."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from mlx_delta.cli.bench import app as bench
from mlx_delta.cli.chat import chat
from mlx_delta.cli.command import Debug, register
from mlx_delta.cli.convert import convert
from mlx_delta.cli.demo import demo
from mlx_delta.cli.errors import BROKEN_PIPE, reported_errors
from mlx_delta.cli.evaluate import evaluate
from mlx_delta.cli.generate import generate
from mlx_delta.cli.imatrix import imatrix
from mlx_delta.cli.info import info
from mlx_delta.cli.selfcheck import selfcheck
from mlx_delta.cli.serve import serve

app = typer.Typer(
    name="mlx-delta",
    help="Convert, inspect and run Qwen3.5 (gated-delta + attention) models with MLX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
register(app, "demo", demo)
register(app, "convert", convert)
register(app, "imatrix", imatrix)
register(app, "chat", chat)
register(app, "generate", generate)
register(app, "serve", serve)
register(app, "info", info)
register(app, "evaluate", evaluate)
register(app, "selfcheck", selfcheck)
app.add_typer(bench, name="bench")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mlx-delta {version('mlx-delta')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    """Convert, inspect and run Qwen3.5 (gated-delta + attention) models with MLX."""


def run() -> None:
    """The program: exits with its status. Errors outside of commands (``--help`` that cannot be written) end here."""
    try:
        with reported_errors():
            app(prog_name="mlx-delta")
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # as typer ends then
            sys.exit(BROKEN_PIPE)
        raise
