"""``mlx-delta convert``: a checkpoint to a quantized MLX one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from mlx_delta.cli.errors import reported_errors

if TYPE_CHECKING:
    from mlx_delta.convert.pipeline import ConvertReport, Progress


@reported_errors()
def convert(
    source: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            help="Checkpoint: a directory with config.json and BF16, F16 or F32 safetensors, or a .gguf file.",
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to create. It appears whole, at the end.")],
    quantize: Annotated[
        bool, typer.Option("--quantize", "-q", help="Quantize the language model; without it, all stays bfloat16.")
    ] = False,
    q_recipe: Annotated[
        str | None,
        typer.Option(
            help="'unsloth': gate/up N bits, down N+1, embedding, q/k/v and in_proj N+2, lm_head N+3, the rest "
            "bfloat16; needs --imatrix-path. By default every matrix has --q-bits.",
            show_default="uniform",
        ),
    ] = None,
    q_bits: Annotated[
        int | None,
        typer.Option(help="Bits: 2, 3, 4, 5, 6 or 8; the recipe's base N.", show_default="3 for unsloth, else 4"),
    ] = None,
    q_group_size: Annotated[int, typer.Option(help="Weights that share a scale and a bias: 32, 64 or 128.")] = 64,
    imatrix_path: Annotated[
        Path | None,
        typer.Option(
            help="Importance matrix as llama.cpp's llama-imatrix writes it, GGUF or .dat; turns AWQ on, and weighs the "
            "fit of scales and biases."
        ),
    ] = None,
    awq: Annotated[
        bool, typer.Option("--awq/--no-awq", help="Fold importance into norms and weights before quantizing.")
    ] = True,
    awq_ratio: Annotated[
        float | None,
        typer.Option(help="AWQ's exponent, 0 to 1, for all folds.", show_default="searched for each"),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit/--no-fit", help="Fit scales and biases by least squares, or use mx.quantize alone.")
    ] = True,
    q_overrides: Annotated[
        Path | None,
        typer.Option(
            help='JSON file of widths that go before the recipe\'s, such as {"*.o_proj": 6, "*.mlp.up_proj": '
            '{"bits": 4, "group_size": 32}, "*.lm_head": null}; null keeps a matrix whole.'
        ),
    ] = None,
    keep_mtp: Annotated[
        bool, typer.Option("--keep-mtp", help="Write the multi-token-prediction head too, in bfloat16.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the table of sizes, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output directory if it exists.")] = False,
) -> None:
    """Convert a Qwen3.5 checkpoint to MLX form, quantized or not.

    The result loads in mlx-delta and in mlx-lm. Example:

    mlx-delta convert -i Qwen3.5-9B -o qwen3.5-9b-3bit -q --q-recipe unsloth --imatrix-path imatrix.gguf
    """
    from mlx_delta.convert.pipeline import convert as run

    console = Console(stderr=True)
    columns = (
        TextColumn("converting"),
        BarColumn(),
        TextColumn("{task.fields[tensors]} tensors"),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    # A rich task counts one thing: bytes, which the bar and DownloadColumn show; the tensors get a text of their own.
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("convert", total=None, visible=False, tensors="")

        def show(step: Progress) -> None:
            counts = f"{step.tensors}/{step.total_tensors}"
            bar.update(task, completed=step.nbytes, total=step.total_nbytes, visible=True, tensors=counts)

        report = run(
            source,
            out,
            quantize=quantize,
            recipe=q_recipe,
            bits=q_bits,
            group_size=q_group_size,
            imatrix=imatrix_path,
            awq=awq,
            awq_ratio=awq_ratio,
            fit=fit,
            overrides=q_overrides,
            keep_mtp=keep_mtp,
            dry_run=dry_run,
            force=force,
            progress=show,
        )
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    Console().print(_table(report))


def _table(report: ConvertReport) -> Table:
    """component | bits | tensors | bytes, and the totals."""
    table = Table("component", "bits", title=str(report.path), show_footer=True)
    table.columns[0].footer = "model.safetensors"
    table.columns[1].footer = f"{report.bits_per_weight:.2f} a weight"
    table.add_column("tensors", str(report.tensors), justify="right")
    table.add_column("bytes", f"{report.bytes_predicted:,}", justify="right")
    for row in report.components:
        table.add_row(row.component, row.bits, str(row.tensors), f"{row.nbytes:,}")
    return table
