"""``mlx-delta convert``: a checkpoint to a quantized MLX one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from mlx_delta.cli.console import stdout, warn
from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.process import kept
from mlx_delta.errors import ArgumentError
from mlx_delta.progress import Bars, megabytes, of

if TYPE_CHECKING:
    from mlx_delta.calibrate.layers import LayerCalibration
    from mlx_delta.conversion.prepare import Prepared
    from mlx_delta.conversion.report import ConvertReport

_NARROW = 70  # columns from which on there is room for the number of tensors


def convert(
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            help="Checkpoint: a directory with config.json and BF16, F16 or F32 safetensors, a .gguf file, or "
            "org/name[@revision][/file.gguf] on the Hugging Face Hub.",
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to create. It appears whole, at the end.")],
    quantize: Annotated[
        bool, typer.Option("--quantize", "-q", help="Quantize the language model; without it, all stays bfloat16.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--q-recipe",
            help="'unsloth': gate/up N bits, down N+1, embedding, q/k/v and in_proj N+2, lm_head N+3, the rest "
            "bfloat16; needs --imatrix-path or --calibrate. 'auto': each matrix as wide as its effect on predictions "
            "deserves, in --target-bpw; needs --text or --calibrate. By default every matrix has --q-bits.",
            show_default="uniform",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--q-bits", help="Bits: 2, 3, 4, 5, 6 or 8; the recipe's base N.", show_default="3 for unsloth, else 4"
        ),
    ] = None,
    group_size: Annotated[
        int, typer.Option("--q-group-size", help="Weights that share a scale and a bias: 32, 64 or 128.")
    ] = 64,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix-path",
            help="Importance matrix as llama.cpp's llama-imatrix writes it, GGUF or .dat; turns AWQ on, and weighs the "
            "fit of scales and biases.",
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
    overrides: Annotated[
        Path | None,
        typer.Option(
            "--q-overrides",
            help='JSON file of widths that go before the recipe\'s, such as {"*.o_proj": 6, "*.mlp.up_proj": '
            '{"bits": 4, "group_size": 32}, "*.lm_head": null}; null keeps a matrix whole.',
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(help="For 'auto': bits a weight of the text model, scales, biases and what stays whole included."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="For 'auto': text, or a .jsonl of chats, to measure on, as `mlx-delta imatrix` takes it."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(help="For 'auto': JSON file of what was measured: read if it is there, else written."),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate",
            help="Text, or a .jsonl of chats, as --text: run through the model layer by layer, original and quantized, "
            "so that rounding feeds its errors forward (GPTQ) and each matrix makes up for those before it. Much "
            "closer, and slower. May be given several times; replaces AWQ.",
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="For --calibrate: tokens a chunk.")] = 512,
    max_chunks: Annotated[int, typer.Option(help="For --calibrate: chunks to run.")] = 128,
    keep_mtp: Annotated[
        bool | None,
        typer.Option(
            "--keep-mtp/--no-mtp",
            help="The head that drafts tokens (multi-token prediction): with -q its matrices have 4 bits, whatever the "
            "recipe; --keep-mtp wants one, --no-mtp drops it.",
            show_default="kept where there is one",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the table of sizes, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output directory if it exists.")] = False,
) -> None:
    """Convert a Qwen3.5 checkpoint to MLX form, quantized or not.

    The result loads in mlx-delta and in mlx-lm.

    mlx-delta convert -i Qwen/Qwen3.5-9B -o qwen3.5-9b-4bit -q

    mlx-delta convert -i Qwen/Qwen3.5-9B -o qwen3.5-9b-3bit -q --q-recipe unsloth --imatrix-path imatrix.gguf

    mlx-delta convert -i Qwen/Qwen3.5-9B -o qwen3.5-9b-auto -q --q-recipe auto --target-bpw 4.5 --text calibration.txt
    """
    from mlx_delta.conversion.arguments import Arguments
    from mlx_delta.conversion.pipeline import run
    from mlx_delta.conversion.prepare import prepare
    from mlx_delta.hub.path import model_path

    if text and recipe != "auto":
        raise UsageError(f"--text: expected --q-recipe auto with it, found {recipe or 'no recipe'}")
    arguments = Arguments(
        quantize=quantize,
        recipe=recipe,
        bits=bits,
        group_size=group_size,
        imatrix=imatrix,
        awq=awq,
        awq_ratio=awq_ratio,
        fit=fit,
        overrides=overrides,
        target_bpw=target_bpw,
        keep_mtp=keep_mtp,
        calibrated=bool(calibration),
        measured=bool(sensitivity or (recipe == "auto" and (text or calibration))),
    )
    prepared = prepare(model_path(source, gguf=True), out, arguments, force=force, dry_run=dry_run)
    state = (sensitivity or out).with_name(f"{(sensitivity or out).name}.progress")
    with kept(state), Bars() as bars:
        show = bars.task("converting", megabytes)
        calibrated = _calibration(prepared, calibration, context, max_chunks, bars)
        measured = None
        if recipe == "auto":
            measured = _sensitivity(prepared, text or calibration or [], sensitivity, state, bars)
        report = run(
            prepared,
            sensitivity=measured,
            calibration=calibrated,
            dry_run=dry_run,
            progress=lambda step: show(step.nbytes, step.total_nbytes),
        )
    if recipe == "auto":
        state.unlink(missing_ok=True)
    for warning in (*report.warnings, *(calibrated.notes if calibrated is not None else ())):
        warn(warning)
    console = stdout()
    console.print(_table(report, narrow=console.width < _NARROW))


def _sensitivity(
    prepared: Prepared, text: Sequence[Path], file: Path | None, state: Path, bars: Bars
) -> dict[str, dict[int, float]]:
    """What ``file`` has, or what running the model on ``text`` tells; ``state`` keeps what is done."""
    from mlx_delta.calibrate.chunks import read_chunks
    from mlx_delta.calibrate.sensitivity import CHUNKS, measure_sensitivity
    from mlx_delta.checkpoint.atomic import atomic_file, check_output_file
    from mlx_delta.conversion.auto import read_sensitivity, write_sensitivity
    from mlx_delta.loading import load_checkpoint

    if file is not None and file.is_file():
        return read_sensitivity(file)
    if not text:
        raise ArgumentError(f"{file}: expected what was measured, or --text to measure it on, found no such file")
    if file is not None:
        check_output_file(file, force=False)
    model = load_checkpoint(prepared.checkpoint, "float32")
    chunks = read_chunks(text, model.tokenizer, max_chunks=CHUNKS)
    show = bars.task("measuring", of("matrices"))
    group_size = prepared.arguments.group_size
    found = measure_sensitivity(model, chunks, prepared.importance, group_size, state=state, progress=show)
    if file is not None:
        with atomic_file(file) as partial:
            write_sensitivity(partial, found)
        state.unlink(missing_ok=True)
    return found


def _calibration(
    prepared: Prepared, texts: Sequence[Path] | None, context: int, max_chunks: int, bars: Bars
) -> LayerCalibration | None:
    from mlx_delta.calibrate.layers import layer_calibration

    if not texts:
        return None
    show = bars.task("calibrating", of("chunks of a layer"))
    return layer_calibration(prepared.checkpoint, texts, context=context, max_chunks=max_chunks, progress=show)


def _table(report: ConvertReport, narrow: bool) -> Table:
    """component | bits | tensors | bytes, and the totals; without the tensors where it is narrow."""
    table = Table(
        "component",
        "bits",
        title=str(report.path),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        show_footer=True,
        pad_edge=False,
    )
    table.columns[0].footer, table.columns[0].overflow = "model.safetensors", "fold"
    table.columns[1].footer = f"{report.bits_per_weight:.2f} a weight"
    if not narrow:
        table.add_column("tensors", str(report.tensors), justify="right", no_wrap=True)
    table.add_column("bytes", f"{report.bytes_predicted:,}", justify="right", no_wrap=True)
    for row in report.components:
        count = () if narrow else (str(row.tensors),)
        table.add_row(row.component, row.bits, *count, f"{row.nbytes:,}")
    return table
