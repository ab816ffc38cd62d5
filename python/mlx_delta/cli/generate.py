"""``mlx-delta generate``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_delta.cli.console import warn
from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.options import (
    ByLayers,
    KvBits,
    MemoryBytes,
    Model,
    Mtp,
    PrefixCacheDir,
    PrefixCacheDirBytes,
    System,
    option_flags,
)
from mlx_delta.cli.pictures import Pictures, picture_part, with_pictures
from mlx_delta.cli.process import read_stdin
from mlx_delta.errors import ArgumentError
from mlx_delta.options import SAMPLING
from mlx_delta.progress import Bars, of

if TYPE_CHECKING:
    from mlx_delta.chat.request import Prompt
    from mlx_delta.language_model import LanguageModel
    from mlx_delta.text.generation import Generation


@option_flags("enable_thinking", "preset", *SAMPLING, "seed", "stop", "speculate", max_new_tokens=256)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to say; '-' reads standard input.")],
    system: System = None,
    image: Pictures = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", "--ignore-chat-template", help="Continue the prompt as it stands, without the chat template."
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Activations: float32, float16 or bfloat16.", show_default="the checkpoint's"),
    ] = None,
    kv_bits: KvBits = None,
    memory_bytes: MemoryBytes = None,
    prefix_cache_dir: PrefixCacheDir = None,
    prefix_cache_dir_bytes: PrefixCacheDirBytes = None,
    by_layers: ByLayers = False,
    mtp: Mtp = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of streaming the text.")
    ] = False,
    **options: Any,
) -> None:
    """Generate text from a prompt, streaming it.

    The prompt is the user's message of a chat, unless --raw. Ctrl-C stops and keeps what was printed.

    mlx-delta generate --model qwen3.5-9b-3bit --prompt "Why is the sky blue?" --no-think

    mlx-delta generate -m qwen3.5-9b-3bit -p "def fibonacci(n):" --raw --max-tokens 100 --temp 0 --stop "def "

    mlx-delta generate -m qwen3.5-9b-3bit -p "What is in this picture?" --image photo.jpg

    mlx-delta generate -m Qwen/Qwen3.5-0.8B -p - --json < question.txt

    Started by mlx.launch, the ranks share the weights among them, and rank 0 prints:

    mlx.launch -n 2 -- mlx-delta generate -m qwen3.5-9b-3bit -p "Why is the sky blue?"
    """
    from mlx_delta.chat.settings import GenerationSettings
    from mlx_delta.cli.ranks import joined, together
    from mlx_delta.loading import load_model

    text, think = read_stdin() if prompt == "-" else prompt, options.pop("enable_thinking")
    if raw:
        _check_raw(text, system, think, image)
    else:
        options["preset"] = options["preset"] or "auto"
    GenerationSettings(**options)  # says what is wrong before anything is loaded
    parts = [picture_part(file) for file in image or ()]
    ranks = joined(by_layers)
    leads = ranks is None or ranks.rank == 0
    with together(ranks):
        loaded = load_model(
            model,
            dtype,
            memory_bytes=memory_bytes,
            prefix_cache_dir=prefix_cache_dir,
            prefix_cache_dir_bytes=prefix_cache_dir_bytes,
            kv_bits=kv_bits,
            mtp=mtp,
            ranks=ranks,
        )
        if ranks is not None:
            options["seed"] = ranks.seed(options["seed"])
        bars = Bars() if leads else None
        if bars is not None:
            options["prompt_progress"] = bars.task("reading the prompt", of("tokens"))
        generation = loaded.generate(
            text if raw else _chat_prompt(loaded, system, with_pictures(text, parts), think), **options
        )
        interrupted, shown = _stream(generation, bars, quiet=as_json or not leads)
        if interrupted:  # others may be anywhere: they hear of an end, and not that this one is done
            if leads:
                _report(loaded, generation, shown, as_json, interrupted)
            raise typer.Exit(130)
        if ranks is not None:  # and no one leaves while another waits for it
            ranks.check_same({"the answer": repr(generation.token_ids)})
    if leads:
        _report(loaded, generation, shown, as_json)


def _check_raw(text: str, system: str | None, think: bool | None, image: list[Path] | None) -> None:
    if not text:
        raise ArgumentError("prompt: expected text to continue, found nothing")
    for name, value in (("system", system), ("enable_thinking", think), ("image", image or None)):
        if value is not None:
            raise ArgumentError(f"{name}: expected the chat template with it, found --raw")


def _chat_prompt(model: LanguageModel, system: str | None, content: Any, enable_thinking: bool | None) -> str | Prompt:
    if not model.tokenizer.chat_templates:
        raise UsageError(f"{model.path}: expected a chat template, found none: use --raw")
    variables: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    head = [] if system is None else [{"role": "system", "content": system}]
    messages = [*head, {"role": "user", "content": content}]
    if isinstance(content, str):
        return model.render_chat(messages, **variables)
    return model.prompt(messages, enable_thinking=enable_thinking)


def _stream(generation: Generation, bars: Bars | None, quiet: bool) -> tuple[bool, str]:
    """Print the pieces as they come: (whether Ctrl-C ended it, all the text)."""
    pieces: list[str] = []
    try:
        for piece in generation:
            if bars is not None:
                bars.close()
            pieces.append(piece.text)
            if not quiet:
                typer.echo(piece.text, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        return True, "".join(pieces)
    finally:
        if bars is not None:
            bars.close()
    return False, "".join(pieces)


def _report(model: LanguageModel, generation: Generation, text: str, as_json: bool, interrupted: bool = False) -> None:
    """What follows the text."""
    if as_json:
        shares = _shares(model)
        # mlx.launch, which passes it on, loses characters of several bytes: findings/mlx_launch_lost_characters.sh
        typer.echo(json.dumps({**_summary(generation, text, interrupted), **shares}, ensure_ascii=bool(shares)))
    else:
        typer.echo("")
        typer.echo(_figures(generation), err=True)
    for warning in generation.warnings:
        warn(warning)


def _summary(generation: Generation, text: str, interrupted: bool) -> dict[str, object]:
    import mlx.core as mx

    return {
        "text": text,
        "token_ids": generation.token_ids,
        "finish_reason": "interrupted" if interrupted else generation.finish_reason,
        "prompt_tokens": len(generation.prompt_ids),
        "generated_tokens": len(generation.token_ids),
        "drafted_tokens": generation.drafted_tokens,
        "accepted_tokens": generation.accepted_tokens,
        "prompt_tokens_per_second": round(generation.prompt_tokens_per_second, 2),
        "generation_tokens_per_second": round(generation.tokens_per_second, 2),
        "peak_memory_bytes": mx.get_peak_memory(),
    }


def _shares(model: LanguageModel) -> dict[str, object]:
    """Of several machines: how many, and what each holds."""
    from mlx_delta.distributed.network import SharedNetwork

    network = model.network
    if not isinstance(network, SharedNetwork):
        return {}
    return {"ranks": len(network.weight_bytes), "weight_bytes": list(network.weight_bytes)}


def _figures(generation: Generation) -> str:
    import mlx.core as mx

    return (
        f"[prompt {len(generation.prompt_ids)} tokens, {generation.prompt_tokens_per_second:.1f} tok/s; "
        f"generated {len(generation.token_ids)}, {generation.tokens_per_second:.1f} tok/s; "
        f"peak memory {mx.get_peak_memory() / 1e6:.0f} MB]"
    )
