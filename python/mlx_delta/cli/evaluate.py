"""``mlx-delta evaluate``: models against their reference on a text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from mlx_delta.cli.options import NAMES


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

    mlx-delta evaluate --model qwen3.5-9b-3bit --model qwen3.5-9b-4bit --reference Qwen3.5-9B --text heldout.txt
    """
    from mlx_delta.calibrate.chunks import read_text
    from mlx_delta.evaluation import evaluate as run
    from mlx_delta.evaluation import require_plotting, save_plot
    from mlx_delta.hub.path import model_path
    from mlx_delta.loading import load_model
    from mlx_delta.text.tokenizer import Tokenizer

    if plot is not None:
        require_plotting()
    original = model_path(reference)
    directories = [model_path(each) for each in model]
    content = read_text(text, Tokenizer.from_dir(original).chat_template)
    whole = load_model(original, dtype)
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        models = [load_model(path, dtype) for path in directories]
        results = run(models, whole, content, context=context, max_tokens=max_tokens, progress=show)
    results = [replace(result, model=name) for result, name in zip(results, model, strict=True)]
    if plot is not None:
        save_plot(results, plot)
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in results], indent=2))
        return
    table = Table("model", title=f"{results[0].tokens:,} tokens, reference {reference}")
    for name in ("bytes, text", "KLD mean", "median", "99.9 %", "top-1 equal", "perplexity", "of reference"):
        table.add_column(name, justify="right")
    for each in results:
        table.add_row(
            each.model,
            f"{each.nbytes:,}",
            f"{each.kld_mean:.5f}",
            f"{each.kld_median:.5f}",
            f"{each.kld_p999:.4f}",
            f"{each.top1:.2%}",
            f"{each.perplexity:.4f}",
            f"{each.reference_perplexity:.4f}",
        )
    Console().print(table)
