"""``mlx-delta info``: what a model directory holds, without loading it; or what runs it here."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Column, Table

from mlx_delta.cli.console import stdout
from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.options import NAMES

_NARROW = 76  # columns from which on a group's counts have room beside its name


def info(
    model: Annotated[
        str | None,
        typer.Argument(help=f"{NAMES[0].upper()}{NAMES[1:]} that was downloaded before.", show_default=False),
    ] = None,
    of_system: Annotated[
        bool, typer.Option("--system", help="Show instruction set, threads and versions instead of a model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a model's architecture, parameters, bytes read per token, and bits per tensor group.

    mlx-delta info qwen3.5-9b-3bit

    mlx-delta info --system
    """
    if (model is None) != of_system:
        found = "none" if model is None else f"{model} and --system"
        raise UsageError(f"info: expected a model or --system, found {found}")
    if model is None:
        _show_system(as_json)
    else:
        _show_model(model, as_json)


def _show_system(as_json: bool) -> None:
    from mlx_delta.system import system

    found = system()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        stdout().print(_facts("system", found.facts()))


def _facts(title: str, facts: dict[str, str]) -> Table:
    table = Table(Column(""), Column(title, overflow="fold"), box=box.SIMPLE)
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _show_model(model: str, as_json: bool) -> None:
    from mlx_delta.hub.path import model_path
    from mlx_delta.summary import summarize

    summary = summarize(model_path(model, gguf=True, download=False))
    if as_json:
        typer.echo(json.dumps(summary.as_dict(), indent=2))
        return
    console = stdout()
    console.print(_facts(model, summary.facts()))
    groups = Table("tensor group", "width", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    counts = ("tensors", "parameters", "bytes") if console.width >= _NARROW else ()
    for name in (*counts, "bits"):
        groups.add_column(name, justify="right", no_wrap=True)
    for row in summary.groups:
        cells = {"tensors": f"{row.tensors}", "parameters": f"{row.parameters:,}", "bytes": f"{row.nbytes:,}"}
        groups.add_row(row.component, row.width, *(cells[name] for name in counts), f"{row.bits_per_weight:.2f}")
    console.print(groups)
