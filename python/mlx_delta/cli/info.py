"""``mlx-delta info``: what a model directory holds, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mlx_delta.cli.errors import reported_errors


@reported_errors()
def info(
    directory: Annotated[Path, typer.Argument(help="Model directory: official, converted or quantized.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a model's architecture, parameters, bytes read per token, and bits per tensor group."""
    from mlx_delta.summary import summarize

    summary = summarize(directory)
    if as_json:
        typer.echo(json.dumps(summary.as_dict(), indent=2))
        return
    console = Console()
    facts = Table("", str(directory), box=box.SIMPLE)
    for name, value in summary.facts().items():
        facts.add_row(name, value)
    console.print(facts)
    groups = Table("tensor group", "width", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for name in ("tensors", "parameters", "bytes", "bits"):
        groups.add_column(name, justify="right", no_wrap=True)
    for row in summary.groups:
        groups.add_row(
            row.component,
            row.width,
            str(row.tensors),
            f"{row.parameters:,}",
            f"{row.nbytes:,}",
            f"{row.bits_per_weight:.2f}",
        )
    console.print(groups)
