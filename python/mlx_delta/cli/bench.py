"""``mlx-delta bench``: times beside their floor, the read bandwidth of the machine measured in the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_delta.cli.bench_network import open_network
from mlx_delta.cli.bench_view import (
    decode_lines,
    draw,
    line,
    loading,
    memory,
    prefill_lines,
    summary_line,
    table,
)
from mlx_delta.cli.command import register
from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.options import NAMES, ByLayers, KvBits
from mlx_delta.cli.ranks import joined, led, silent, together
from mlx_delta.errors import ArgumentError, RedTests
from mlx_delta.progress import Bars, megabytes

if TYPE_CHECKING:
    from mlx_delta.bench.roofline import Point
    from mlx_delta.bench.timing import ReadBandwidth
    from mlx_delta.bench.whole_model import Decode, Prefill
    from mlx_delta.model.network import Network

Shape = Annotated[str, typer.Option("--shape", help="Published size whose shapes to use: such as 9b or 35b-a3b.")]
Layers = Annotated[int | None, typer.Option(help="Only the first so many layers of it.", show_default="all")]
ModelDir = Annotated[
    str | None,
    typer.Option("--model", "-m", help=f"Model to run instead of --shape: {NAMES}.", show_default="random weights"),
]
Context = Annotated[int, typer.Option(min=0, help="Tokens already in the cache, of random content.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of a table.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw a roofline to this PNG (needs matplotlib).")]


def kernels(
    shape: Shape = "9b",
    filter_: Annotated[str, typer.Option("--filter", help="Only the cases whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of a case; the median counts.")] = 9,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Time every op at a model's shapes. A case that differs from its reference is refused, and the exit status is 1.

    qmm NAME is one row (decoding), NAME-m8 eight, NAME-m512 a prompt's. %: bytes a second of the read bandwidth.

    mlx-delta bench kernels --shape 9b --filter gate_up --plot roofline.png
    """
    from mlx_delta.bench.cases import cases_of
    from mlx_delta.bench.kernels import Refusal, summarize, time_cases
    from mlx_delta.bench.roofline import Point
    from mlx_delta.bench.sizes import size_named
    from mlx_delta.bench.timing import ReadBandwidth
    from mlx_delta.plot import check_plot

    check_plot(plot)
    cases = [case for case in cases_of(size_named(shape)) if case.real and filter_ in case.id]
    if not cases:
        raise ArgumentError(f"filter_: expected a part of a case's name, such as gate_up, found {filter_}")
    machine = _machine()
    bandwidth = ReadBandwidth()
    if not as_json:
        typer.echo(machine)
        typer.echo(f"{'case':42}{'bits':>8}{'MB':>9}{'ms':>10}{'MAD':>8}{'GFLOP/s':>9}{'GB/s':>8}{'of':>7}{'%':>6}")
    refused, rows = [], []
    for row in time_cases(cases, bandwidth, repeats):
        if as_json:
            typer.echo(json.dumps(row.as_dict()))
        elif isinstance(row, Refusal):
            typer.echo(f"{row.case:42}refused: {row.refused}")
        else:
            typer.echo(line(row))
        if isinstance(row, Refusal):
            refused.append(row.refused)
        else:
            rows.append(row)
    if refused:
        raise RedTests(f"{len(refused)} of {len(cases)} cases differ from their reference: {refused[0]}")
    summary = summarize(rows)
    if summary is not None and not as_json:
        typer.echo(summary_line(summary))
    points = [Point(row.case, row.flops, row.bytes, row.ms / 1e3) for row in rows if row.flops is not None]
    draw(plot, points, bandwidth.median(), f"Ops at the shapes of the {size_named(shape)}")


def decode(
    shape: Shape = "9b",
    layers: Layers = None,
    model: ModelDir = None,
    context: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Tokens already in the cache, of random content; given several times: in turn."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a round.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 7,
    kv_bits: KvBits = None,
    by_layers: ByLayers = False,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Decode, with random weights of a model's shape in the unsloth recipe, or a model of your own.

    Refuses to when an op differs from its reference.

    mlx-delta bench decode --model qwen3.5-9b-3bit --context 0 --context 8192
    """

    def run(network: Network, bandwidth: ReadBandwidth) -> Iterator[tuple[Decode, dict[str, str], Point]]:
        from mlx_delta.bench.roofline import Point
        from mlx_delta.bench.whole_model import bench_decode

        rows = bench_decode(network, contexts=context or [0], tokens=tokens, rounds=repeats, bandwidth=bandwidth)
        flops = 2 * _weights_used(network)
        for row in rows:
            nbytes = row.bytes_per_token + row.cache_bytes_per_token
            yield (
                row,
                decode_lines(row, rows[0]),
                Point(f"after {row.context}", flops, nbytes, 1 / row.tokens_per_second),
            )

    _whole_model("Decode", run, shape, layers, model, kv_bits, by_layers, as_json, plot)


def prefill(
    shape: Shape = "9b",
    layers: Layers = None,
    model: ModelDir = None,
    context: Context = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Timed prompts; the median counts.")] = 5,
    kv_bits: KvBits = None,
    by_layers: ByLayers = False,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Prefill a prompt, with random weights of a model's shape in the unsloth recipe, or a model of your own.

    Refuses to when an op differs from its reference.

    mlx-delta bench prefill --shape 9b --layers 8 --tokens 2048
    """

    def run(network: Network, bandwidth: ReadBandwidth) -> Iterator[tuple[Prefill, dict[str, str], Point]]:
        from mlx_delta.bench.roofline import Point
        from mlx_delta.bench.whole_model import bench_prefill
        from mlx_delta.engine.cuts import CHUNK

        row = bench_prefill(network, context=context, tokens=tokens, rounds=repeats, bandwidth=bandwidth)
        nbytes = network.bytes_per_token * -(-tokens // CHUNK)
        seconds = tokens / row.tokens_per_second
        yield row, prefill_lines(row), Point("prefill", 2 * _weights_used(network) * tokens, nbytes, seconds)

    _whole_model("Prefill", run, shape, layers, model, kv_bits, by_layers, as_json, plot)


def throughput(
    shape: Shape = "9b",
    layers: Layers = None,
    model: ModelDir = None,
    concurrency: Annotated[str, typer.Option(help="Numbers of clients, in turn.")] = "1,2,4,8,16",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt: from half to one and a half of it.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate: likewise.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Sequences of a client, one after another.")] = 3,
    kv_bits: KvBits = None,
    by_layers: ByLayers = False,
    as_json: Json = False,
) -> None:
    """Many sequences at once, of unequal length, coming and going: random weights of a shape, or a model of your own.

    Refuses to when an op differs from its reference.

    mlx-delta bench throughput --shape 9b --layers 8 --concurrency 1,8
    """
    from mlx_delta.bench.throughput import bench_throughput, followed

    counts = _counts(concurrency)
    ranks = None if model is None else joined(by_layers)
    with together(ranks), silent(ranks):
        machine = _machine()
        network, facts = open_network(shape, layers, model, ranks, kv_bits)
        rows = bench_throughput(
            network,
            concurrency=counts,
            prompt=prompt,
            tokens=tokens,
            rounds=repeats,
            led=lambda engine: led(partial(followed, engine), ranks),
        )
        if as_json:
            typer.echo(json.dumps({**facts, "concurrency": {str(row.concurrency): row.as_dict() for row in rows}}))
            return
        table({"machine": machine, "model": f"{facts['model']}, {facts['layers']} layers"})
        typer.echo(f"{'clients':>8}{'tok/s':>9}{'times':>7}{'of each':>9}" + "     first      99 %       gap     worst")
        for row in rows:
            seconds = (row.time_to_first_token, row.time_to_first_token_p99, row.gap, row.worst_gap)
            times = row.tokens_per_second / rows[0].tokens_per_second
            typer.echo(
                f"{row.concurrency:8}{row.tokens_per_second:9.1f}{times:7.2f}"
                f"{row.sequence_tokens_per_second:9.1f}" + "".join(f"{1e3 * each:7.0f} ms" for each in seconds)
            )


def speculate(
    shape: Shape = "9b",
    layers: Layers = None,
    model: ModelDir = None,
    acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="For --shape: how often a draft is right, which is drawn.")
    ] = 0.8,
    context: Context = 64,
    tokens: Annotated[int, typer.Option(min=4, help="For --model: tokens of an answer.")] = 96,
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes of each kind, or answers; medians count.")] = 9,
    as_json: Json = False,
) -> None:
    """Checking several drafts in one pass against one token a pass, in turn.

    With random weights of a shape drafts are right as often as --acceptance says; with --model greedy answers of your
    own model, drafting as --speculate auto does.

    mlx-delta bench speculate --shape 9b --layers 8 --acceptance 0.7
    """
    if model is not None:
        _speculate_answers(model, tokens, repeats, as_json)
        return
    from mlx_delta.bench.random_model import random_network
    from mlx_delta.bench.sizes import size_named
    from mlx_delta.bench.speculate import simulate

    machine = _machine()
    size = size_named(shape)
    with Bars() as bars:
        network = random_network(size, layers=layers, progress=bars.task("random weights", megabytes), head=True)
    if not as_json:
        table({"machine": machine, "model": f"{size}, random weights, {network.config.num_layers} layers"})
        typer.echo(f"{'drafts':>8}{'pass':>10}{'drafting':>10}{'checking':>10}{'tokens':>8}{'speedup':>9}")
    rows = simulate(network, drafts=(1, 2, 3, 4), acceptance=acceptance, context=context, rounds=repeats)
    for row in rows:
        times = "".join(f"{each:7.1f} ms" for each in (row.pass_ms, row.drafting_ms, row.checking_ms))
        row_text = f"{row.drafts:8}{times}{row.tokens:8.2f}{row.speedup:9.2f}"
        typer.echo(json.dumps(row.as_dict()) if as_json else row_text)
    best = max(rows, key=lambda row: row.speedup)
    facts = {"model": f"{size}, random weights", "layers": network.config.num_layers, **best.as_dict()}
    typer.echo(json.dumps(facts) if as_json else f"best: {best.drafts} drafts, {best.speedup:.2f} times as fast")


_ASKED = (
    "def fibonacci(n):\n",
    "import json\n\n\ndef read(path):\n",
    "Count to 7: 1 2 3",
    "The list again, word for word: cloud glacier hammer button\ncloud glacier",
)


def _speculate_answers(model: str, tokens: int, repeats: int, as_json: bool) -> None:
    from mlx_delta.bench.speculate import answers
    from mlx_delta.hub.path import model_path
    from mlx_delta.loading import load_model

    machine = _machine()
    found = answers(load_model(model_path(model)), _ASKED, tokens, repeats)
    if as_json:
        typer.echo(json.dumps({"model": model, **found}))
        return
    table({"machine": machine, "model": model})
    table({name: f"{value:.2f}" if isinstance(value, float) else str(value) for name, value in found.items()})


def _counts(text: str) -> list[int]:
    """Of "1,2,8"."""
    try:
        counts = [int(each) for each in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--concurrency: expected numbers such as 1,8, found {text!r:.80}")
    return counts


def _whole_model(
    title: str,
    run: Callable[[Network, ReadBandwidth], Iterable[tuple[Decode | Prefill, dict[str, str], Point]]],
    shape: str,
    layers: int | None,
    directory: str | None,
    kv_bits: int | None,
    by_layers: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """What ``run`` measures of a network: rows, each as lines of a table and as a point of the plot."""
    from mlx_delta.bench.timing import ReadBandwidth
    from mlx_delta.plot import check_plot

    check_plot(plot)
    ranks = None if directory is None else joined(by_layers)
    with together(ranks), silent(ranks):
        machine = _machine()
        network, facts = open_network(shape, layers, directory, ranks, kv_bits)
        bandwidth = ReadBandwidth()
        if not as_json:
            table({"machine": machine, "model": f"{facts['model']}, {facts['layers']} layers"})
        points = []
        for row, lines, point in run(network, bandwidth):
            if as_json:
                typer.echo(json.dumps({**facts, **row.as_dict()}))
            else:
                table(lines)
            points.append(point)
        if not as_json:
            table(memory(row.weight_bytes, row.peak_memory_bytes, row.peak_resident_bytes) | loading(facts))
    if ranks is None or ranks.rank == 0:
        draw(plot, points, bandwidth.median(), f"{title}, {facts['model']}")


def model(
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    shape: Shape = "9b",
    layers: Layers = None,
    force: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
) -> None:
    """Write a converted checkpoint with random weights, directly in packed form, in the unsloth recipe.

    mlx-delta bench model --shape 9b --layers 8 -o random-9b
    """
    from mlx_delta.bench.random_model import write_model
    from mlx_delta.bench.sizes import size_named

    with Bars() as bars:
        progress = bars.task("random weights", megabytes)
        write_model(size_named(shape), out, layers=layers, progress=progress, force=force)


def _weights_used(network: Network) -> int:
    """Weights that a token is multiplied with."""
    return sum(matrix.rows * matrix.cols for _, matrix in network.matrices())


def _machine() -> str:
    """What runs it, and a warning on stderr where others use the machine too."""
    from mlx_delta import _core

    load = os.getloadavg()[0]
    if load > _core.cpu_threads() / 2:
        typer.echo(f"warning: load average {load:.1f}: other processes disturb these times", err=True)
    return f"{_core.cpu_isa()}, {_core.cpu_threads()} threads, bfloat16"


app = typer.Typer(
    help="Time the kernels, decoding and prefill on this machine, against its read bandwidth.", no_args_is_help=True
)
register(app, "kernels", kernels)
register(app, "decode", decode)
register(app, "throughput", throughput)
register(app, "prefill", prefill)
register(app, "speculate", speculate)
register(app, "model", model)
