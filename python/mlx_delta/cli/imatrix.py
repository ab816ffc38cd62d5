"""``mlx-delta imatrix``: a calibration run, written as llama.cpp's importance matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_delta.cli.options import NAMES
from mlx_delta.cli.process import kept
from mlx_delta.errors import ArgumentError


def imatrix(
    model: Annotated[str, typer.Option("--model", "-m", help=f"Model to run, unquantized is best: {NAMES}.")],
    text: Annotated[
        list[Path],
        typer.Option(
            "--text",
            "-t",
            help='UTF-8 text, or a .jsonl file of chats: {"messages": [..], "tools": [..]} a line. May be given '
            "several times; their chunks take turns.",
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="File to create.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="gguf, or dat, llama.cpp's older one.", show_default="by the file's name, or gguf"
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens a chunk; each starts from an empty cache.")] = 512,
    max_chunks: Annotated[int | None, typer.Option(help="Chunks to run.", show_default="all of the text")] = None,
    dtype: Annotated[str, typer.Option(help="Activations: float32, float16 or bfloat16.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> None:
    """Measure what every matrix of a model reads on calibration text, for `mlx-delta convert --imatrix-path`.

    The file is llama.cpp's: llama-quantize takes it too. An interrupted run goes on where it was when started again.

    mlx-delta imatrix --model Qwen/Qwen3.5-9B --text calibration.txt --text chats.jsonl -o imatrix.gguf
    """
    from mlx_delta.calibrate.chunks import read_chunks
    from mlx_delta.calibrate.importance import measure_importance
    from mlx_delta.checkpoint.atomic import atomic_file, check_output_file
    from mlx_delta.conversion.imatrix import FORMATS, write_imatrix
    from mlx_delta.hub.path import model_path
    from mlx_delta.loading import check_dtype, load_model
    from mlx_delta.progress import Bars, of
    from mlx_delta.text.tokenizer import Tokenizer

    chosen = form or ("dat" if out.suffix == ".dat" else "gguf")
    if chosen not in FORMATS:
        raise ArgumentError(f"form: expected {' or '.join(FORMATS)}, found {chosen}")
    check_output_file(out, force)
    check_dtype(dtype)
    directory = model_path(model)
    chunks = read_chunks(text, Tokenizer.from_dir(directory), context, max_chunks)
    loaded = load_model(directory, dtype)
    state = out.with_name(f"{out.name}.progress")
    with kept(state), Bars() as bars:
        show = bars.task("measuring", of(f"chunks of {context} tokens"))
        names = [str(file) for file in text]
        run = measure_importance(
            loaded, chunks, names, state=state, progress=lambda step: show(step.chunks, len(chunks))
        )
    with atomic_file(out, force) as partial:
        write_imatrix(partial, run, loaded.config, chosen)
    state.unlink(missing_ok=True)
    typer.echo(f"{out}: {len(run.sums)} matrices, {run.chunks} chunks, {run.tokens:,} tokens")
