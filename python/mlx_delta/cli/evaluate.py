"""``mlx-delta evaluate``: models against their reference on a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mlx_delta.cli.console import stdout
from mlx_delta.cli.options import NAMES

if TYPE_CHECKING:
    from mlx_delta.evaluation import Evaluation

_NARROW = 80  # columns from which on a model takes one line


def evaluate(
    model: Annotated[
        list[str], typer.Option("--model", "-m", help=f"Model to judge: {NAMES}; may be given several times.")
    ],
    reference: Annotated[str, typer.Option("--reference", "-r", help="Model to compare with, as --model.")],
    text: Annotated[
        Path, typer.Option("--text", "-t", help="UTF-8 text, or a .jsonl of chats, that neither was calibrated on.")
    ],
    context: Annotated[int, typer.Option(help="Tokens a window; each starts from an empty cache.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the text to use.", show_default="all of it")] = None,
    dtype: Annotated[
        str,
        typer.Option(help="Activations of both: float32, float16 or bfloat16. float32 shows the weights' error alone."),
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw mean KLD against size to this PNG (needs matplotlib).")
    ] = None,
) -> None:
    """Measure how far models are from their reference: KL divergence, perplexity, top-1 agreement.

    mlx-delta evaluate -m qwen3.5-9b-3bit -m qwen3.5-9b-4bit -r Qwen/Qwen3.5-9B --text heldout.txt

    mlx-delta evaluate -m qwen3.5-9b-3bit -r Qwen/Qwen3.5-9B --text chats.jsonl --max-tokens 8192 --plot kld.png
    """
    from mlx_delta.calibrate.chunks import read_text
    from mlx_delta.evaluation import check_options
    from mlx_delta.evaluation import evaluate as run
    from mlx_delta.hub.path import model_path
    from mlx_delta.loading import check_dtype, load_model
    from mlx_delta.plot import check_plot, save_evaluations
    from mlx_delta.progress import Bars, of
    from mlx_delta.text.tokenizer import Tokenizer

    check_options(context, max_tokens)
    check_dtype(dtype)
    check_plot(plot)
    original = model_path(reference)
    directories = [model_path(each) for each in model]
    content = read_text(text, Tokenizer.from_dir(original))
    whole = load_model(original, dtype)
    with Bars() as bars:
        models = [load_model(path, dtype) for path in directories]
        progress = bars.task("evaluating", of("tokens"))
        results = run(models, whole, content, context=context, max_tokens=max_tokens, progress=progress)
    results = [replace(result, model=name) for result, name in zip(results, model, strict=True)]
    if plot is not None:
        save_evaluations(results, plot)
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in results], indent=2))
        return
    console = stdout()
    first = results[0]
    console.print(f"{first.tokens:,} tokens, reference {reference}: perplexity {first.reference_perplexity:.4f}")
    console.print(_records(results) if console.width < _NARROW else _table(results))


def _figures(result: Evaluation) -> dict[str, str]:
    return {
        "MB": f"{result.nbytes / 1e6:,.1f}",
        "KLD mean": f"{result.kld_mean:.5f}",
        "median": f"{result.kld_median:.5f}",
        "99.9 %": f"{result.kld_p999:.4f}",
        "top-1": f"{result.top1:.2%}",
        "perplexity": f"{result.perplexity:.4f}",
    }


def _table(results: Sequence[Evaluation]) -> Table:
    """A line a model."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in _figures(results[0]):
        table.add_column(name, justify="right", no_wrap=True)
    for each in results:
        table.add_row(each.model, *_figures(each).values())
    return table


def _records(results: Sequence[Evaluation]) -> Group:
    """A line a figure."""
    lines = []
    for each in results:
        lines += [
            Text(""),
            Text(each.model),
            *(Text(f"  {name:11}{text:>11}") for name, text in _figures(each).items()),
        ]
    return Group(*lines)
