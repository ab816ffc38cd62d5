"""``mlx-delta``: the commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from mlx_delta.cli.bench import app as bench
from mlx_delta.cli.chat import chat
from mlx_delta.cli.convert import convert
from mlx_delta.cli.demo import demo
from mlx_delta.cli.evaluate import evaluate
from mlx_delta.cli.generate import generate
from mlx_delta.cli.imatrix import imatrix
from mlx_delta.cli.info import info

app = typer.Typer(
    name="mlx-delta",
    help="Convert, inspect and run Qwen3.5 (gated-delta + attention) models with MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo)
app.command("convert")(convert)
app.command("imatrix")(imatrix)
app.command("chat")(chat)
app.command("generate")(generate)
app.command("info")(info)
app.command("evaluate")(evaluate)
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
) -> None:
    """Convert, inspect and run Qwen3.5 (gated-delta + attention) models with MLX."""


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
