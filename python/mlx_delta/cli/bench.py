"""``mlx-delta bench``: times beside their floor, the read bandwidth of the machine measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from mlx_delta.cli.errors import reported_errors

if TYPE_CHECKING:
    from mlx_delta.bench.random_model import Progress
    from mlx_delta.model.qwen3_5 import Network

app = typer.Typer(
    help="Time the kernels, decoding and prefill on this machine, against its read bandwidth.", no_args_is_help=True
)

Shape = Annotated[str, typer.Option("--shape", help="Published size whose shapes to use: 0.8b, 2b, 4b, 9b or 27b.")]
Layers = Annotated[int | None, typer.Option(help="Only so many layers of it.", show_default="all")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]


@app.command("kernels")
@reported_errors()
def kernels(
    shape: Shape = "9b",
    filter_: Annotated[str, typer.Option("--filter", help="Only the cases whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of a case; the median counts.")] = 9,
    as_json: Json = False,
) -> None:
    """Time every op at a model's shapes; a case that differs from its reference is refused."""
    from mlx_delta import _core
    from mlx_delta.bench.cases import cases_of
    from mlx_delta.bench.kernels import Refusal, time_cases
    from mlx_delta.bench.sizes import size_named
    from mlx_delta.bench.timing import ReadBandwidth

    cases = [case for case in cases_of(size_named(shape)) if case.real and filter_ in case.id]
    bandwidth = ReadBandwidth()
    if not as_json:
        typer.echo(f"{_core.cpu_isa()}, {_core.cpu_threads()} threads, bfloat16; %: of a plain read timed in turn")
        typer.echo(f"{'case':42}{'bits':>8}{'MB':>9}{'ms':>10}{'MAD':>8}{'GB/s':>8}{'read':>8}{'%':>6}")
    refused = 0
    for row in time_cases(cases, bandwidth, repeats):
        refused += isinstance(row, Refusal)
        if as_json:
            typer.echo(json.dumps(row.as_dict()))
        elif isinstance(row, Refusal):
            typer.echo(f"{row.case:42}refused: {row.refused}")
        else:
            typer.echo(
                f"{row.case:42}{row.bits:>8}{row.bytes / 1e6:9.3f}{row.ms:10.4f}{row.mad:8.4f}{row.gbs:8.1f}"
                f"{row.read_gbs:8.1f}{100 * row.share:6.0f}"
            )
    if refused:
        raise typer.Exit(1)


@app.command("decode")
@reported_errors()
def decode(
    shape: Shape = "9b",
    layers: Layers = None,
    context: Annotated[int, typer.Option(min=0, help="Tokens already in the cache.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a round.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 7,
    as_json: Json = False,
) -> None:
    """Decode with random weights of a model's shape."""
    from mlx_delta.bench.checks import check_ops
    from mlx_delta.bench.timing import ReadBandwidth
    from mlx_delta.bench.whole_model import bench_decode

    check_ops()
    network = _random_network(shape, layers)
    row = bench_decode(network, context=context, tokens=tokens, rounds=repeats, bandwidth=ReadBandwidth())
    if as_json:
        typer.echo(json.dumps(row.as_dict()))
        return
    typer.echo(
        f"decode {shape}: {row.tokens_per_second:.2f} tok/s (MAD {row.tokens_per_second_mad:.2f}, {row.rounds} rounds "
        f"of {row.tokens}), {row.bytes_per_token / 1e9:.3f} GB a token, "
        f"{row.tokens_per_second * row.bytes_per_token / 1e9:.1f} of {row.read_bandwidth_gbs:.1f} GB/s: "
        f"{100 * row.bandwidth_share:.0f} %"
    )


@app.command("prefill")
@reported_errors()
def prefill(
    shape: Shape = "9b",
    layers: Layers = None,
    context: Annotated[int, typer.Option(min=0, help="Tokens already in the cache.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Timed prompts; the median counts.")] = 5,
    as_json: Json = False,
) -> None:
    """Prefill a prompt with random weights of a model's shape."""
    from mlx_delta.bench.checks import check_ops
    from mlx_delta.bench.timing import ReadBandwidth
    from mlx_delta.bench.whole_model import bench_prefill

    check_ops()
    network = _random_network(shape, layers)
    row = bench_prefill(network, context=context, tokens=tokens, rounds=repeats, bandwidth=ReadBandwidth())
    if as_json:
        typer.echo(json.dumps(row.as_dict()))
        return
    typer.echo(
        f"prefill {shape}: {row.tokens_per_second:.1f} tok/s (MAD {row.tokens_per_second_mad:.1f}, {row.rounds} prompts"
        f" of {row.tokens} tokens)"
    )


@app.command("model")
@reported_errors()
def model(
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    shape: Shape = "9b",
    layers: Layers = None,
    force: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
) -> None:
    """Write a converted checkpoint with random weights, directly in packed form."""
    from mlx_delta.bench.random_model import write_model
    from mlx_delta.bench.sizes import size_named

    with _shown() as progress:
        write_model(size_named(shape), out, layers=layers, progress=progress, force=force)


def _random_network(shape: str, layers: int | None) -> Network:
    from mlx_delta.bench.random_model import random_network
    from mlx_delta.bench.sizes import size_named

    with _shown() as progress:
        return random_network(size_named(shape), layers=layers, progress=progress)


@contextmanager
def _shown() -> Iterator[Progress]:
    """A bar on stderr."""
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("random weights", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
