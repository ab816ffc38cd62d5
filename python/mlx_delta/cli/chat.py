"""``mlx-delta chat``: a conversation in the terminal, or one question through a pipe."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_delta.cli.console import stderr
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
from mlx_delta.cli.pictures import Pictures, picture_part
from mlx_delta.cli.process import read_stdin
from mlx_delta.cli.ranks import joined, led, together
from mlx_delta.errors import TextError
from mlx_delta.json_files import read_json
from mlx_delta.options import SAMPLING


@option_flags(
    "enable_thinking", "thinking_budget", "preset", *SAMPLING, "seed", "stop", "speculate", max_new_tokens=4096
)
def chat(
    model: Model,
    system: System = None,
    image: Pictures = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="Python file whose typed functions the model may call; each call is asked about."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run tools without asking.")] = False,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that answers follow (needs llguidance).")
    ] = None,
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
    **options: Any,
) -> None:
    """Chat with a model: markdown as it streams, thoughts dimmed, tool calls shown. /help tells the commands.

    Ctrl-C ends the answer, Ctrl-D the program. With piped input the whole of it is one question, and the answer's text
    alone goes to standard output.

    mlx-delta chat --model qwen3.5-9b-3bit --system "Answer in one sentence."

    mlx-delta chat --model qwen3.5-9b-3bit --tools tools.py --thinking-budget 500

    mlx-delta chat --model qwen3.5-9b-3bit --image photo.jpg

    echo "Why is the sky blue?" | mlx-delta chat --model qwen3.5-9b-3bit --no-think

    Started by mlx.launch, the ranks share the weights among them; each line is a question, /exit ends.
    """
    from mlx_delta.arch.registry import read_config
    from mlx_delta.chat.functions import load_functions
    from mlx_delta.chat.settings import ChatSettings
    from mlx_delta.cli.chat_terminal import ChatTerminal
    from mlx_delta.cli.chat_turns import Conversation
    from mlx_delta.cli.chat_view import PlainView
    from mlx_delta.hub.path import is_named, model_path
    from mlx_delta.loading import load_model

    functions = load_functions(tools) if tools else {}
    options["tools"] = list(functions.values())
    options["json_schema"] = read_json(json_schema, UsageError) if json_schema else None
    ChatSettings(**options)  # says what is wrong before anything is loaded
    for file in image or ():
        picture_part(file)
    if not is_named(model):
        read_config(model_path(model))
    ranks = joined(by_layers)
    piped = not sys.stdin.isatty() and ranks is None
    question = _piped_question() if piped else ""
    directory = model_path(model)
    with together(ranks):
        with nullcontext() if ranks is not None and ranks.rank else stderr().status(f"loading {model}"):
            loaded = load_model(
                directory,
                dtype,
                memory_bytes=memory_bytes,
                prefix_cache_dir=prefix_cache_dir,
                prefix_cache_dir_bytes=prefix_cache_dir_bytes,
                kv_bits=kv_bits,
                mtp=mtp,
                ranks=ranks,
            )
        with led(loaded.led, ranks) as leads:
            if not leads:
                return
            conversation = Conversation(loaded, options, functions, system=system)
            for file in image or ():
                conversation.show(file)
            if not piped and sys.stdin.isatty():
                ChatTerminal(conversation, run_tools=yes, title=model if is_named(model) else None).run()
                return
            # mlx.launch passes lines on, and no end of them.
            questions = iter([question]) if piped else iter(sys.stdin.readline, "")
            for each in questions:
                if each.strip() == "/exit":
                    return
                if not each.strip():
                    continue
                conversation.answer(each.strip(), PlainView(), lambda call: yes)
                if conversation.declined:
                    typer.echo(f"not run without --yes: {', '.join(conversation.declined)}", err=True)
                if conversation.interrupted:
                    raise typer.Exit(130)


def _piped_question() -> str:
    question = read_stdin().strip()
    if not question:
        raise TextError("standard input: expected a question, found nothing")
    return question
