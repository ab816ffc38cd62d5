"""The library's options as flags of a command: names, types and texts are those of ``mlx_delta.options``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from mlx_delta.options import SAMPLING, ChatOptions, option_texts

F = TypeVar("F", bound=Callable[..., Any])

NAMES = "a directory, or org/name[@revision] of a model on the Hugging Face Hub"
System = Annotated[
    str | None, typer.Option("--system", "--system-prompt", "-s", help="System message.", show_default="none")
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits", help="8: keep keys and values in 8 bits, half the memory of a context.", show_default="off"
    ),
]
MemoryBytes = Annotated[
    int | None,
    typer.Option(
        "--memory-bytes",
        help="Most memory for weights, answers under way and what is kept; what does not fit waits, or is refused.",
        show_default="what a GPU may have, or nine tenths of the machine's",
    ),
]
PrefixCacheDir = Annotated[
    Path | None,
    typer.Option(
        "--prefix-cache-dir",
        help="Folder that keeps what is computed of prompts and answers, so that a restart goes on from there.",
        show_default="off",
    ),
]
PrefixCacheDirBytes = Annotated[
    int | None,
    typer.Option("--prefix-cache-dir-bytes", help="Most bytes of all files in that folder.", show_default="16 GiB"),
]
ByLayers = Annotated[
    bool,
    typer.Option(
        "--by-layers",
        help="Started by mlx.launch: whole layers for each rank, a message each, instead of a part of every layer.",
    ),
]
Mtp = Annotated[
    str | None,
    typer.Option(
        "--mtp",
        "--draft-model",
        help="MTP head to draft with, where the model's files have none: a qwen3_5_mtp directory or the original.",
        metavar="MODEL",
        show_default="the model's own",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help=f"Model, official, converted or quantized: {NAMES}.")]

# Where a flag is not simply "--" and the name.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("--temperature", "--temp", "-t"),
    "max_new_tokens": ("--max-new-tokens", "--max-tokens", "-n"),
    "enable_thinking": ("--think/--no-think",),
}
_TYPES: Mapping[str, Any] = {"stop": list[str] | None, "speculate": str | None}
_METAVARS = {"stop": "TEXT", "speculate": "auto|off|1..7"}  # may be given several times
_SILENT = {
    **dict.fromkeys(SAMPLING, "the preset's"),
    "seed": "a fresh one",
    "enable_thinking": "the template's",
    "speculate": "off",
}


def option_flags(*names: str, **defaults: Any) -> Callable[[F], F]:
    """For a command that ends in ``**options``: flags for the ``names`` of ``ChatOptions`` and for ``defaults``, which
    have values of their own here."""

    def add(command: F) -> F:
        hints, texts = get_type_hints(ChatOptions), option_texts(ChatOptions)
        named = [
            p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]
        for name in (*names, *defaults):
            default = defaults.get(name)
            shown = default is not None or _SILENT.get(name, False)
            flag = typer.Option(
                *_FLAGS.get(name, ()), help=texts[name], show_default=shown, metavar=_METAVARS.get(name)
            )
            hint: Any = Annotated[_TYPES.get(name, hints[name]), flag]
            named.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
        command.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
        return command

    return add
