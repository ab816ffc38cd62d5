"""``mlx-delta chat``: a conversation in the terminal, or one question through a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlx_delta.cli.process import read_stdin


def chat(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory: official, converted or quantized.")],
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.", show_default="none")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="Python file whose typed functions the model may call; each call is asked about."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run tools without asking.")] = False,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Think before answering.", show_default="the template's")
    ] = None,
    thinking_budget: Annotated[
        int | None, typer.Option(help="End thoughts after so many tokens.", show_default="no limit")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Most tokens of an answer.")] = 4096,
    preset: Annotated[
        str, typer.Option(help="Sampling: auto, thinking, coding, instruct, or checkpoint (its own file).")
    ] = "auto",
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 takes the likeliest token.", show_default="the preset's"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest.", show_default="the preset's")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest with this mass.", show_default="the preset's")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep what is this likely against the best.", show_default="the preset's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make answers repeatable.", show_default="a fresh one")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that answers follow (needs llguidance).")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Activations: float32, float16 or bfloat16.", show_default="the checkpoint's"),
    ] = None,
) -> None:
    """Chat with a model: markdown as it streams, thoughts dimmed, tool calls shown. /help tells the commands.

    Ctrl-C ends the answer, Ctrl-D the program. With piped input the whole of it is one question, and the answer's text
    alone goes to standard output.

    mlx-delta chat --model qwen3.5-9b-3bit

    echo "Why is the sky blue?" | mlx-delta chat --model qwen3.5-9b-3bit
    """
    from mlx_delta.chat.functions import function_tool, load_functions
    from mlx_delta.cli.chat_terminal import ChatTerminal
    from mlx_delta.cli.chat_turns import Conversation
    from mlx_delta.cli.chat_view import PlainView
    from mlx_delta.loading import load_model

    functions = load_functions(tools) if tools else {}
    options: dict[str, Any] = {
        "tools": [function_tool(function) for function in functions.values()] or None,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "preset": preset,
        "enable_thinking": think,
        "thinking_budget": thinking_budget,
        "json_schema": _read_schema(json_schema) if json_schema else None,
    }
    piped = not sys.stdin.isatty()
    question = _piped_question() if piped else ""
    with Console(stderr=True).status(f"loading {model}"):
        loaded = load_model(model, dtype)
    conversation = Conversation(loaded, options, functions, system=system)
    if not piped:
        ChatTerminal(conversation, run_tools=yes).run()
        return
    view = PlainView()
    outcome = conversation.answer(question, view, lambda call: yes)
    if conversation.declined:
        typer.echo(f"not run without --yes: {', '.join(conversation.declined)}", err=True)
    if outcome == "interrupted":
        raise typer.Exit(130)


def _piped_question() -> str:
    question = read_stdin().strip()
    if not question:
        raise ValueError("standard input: expected a question, found nothing")
    return question


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"{path}: expected a JSON schema, an object, found {type(schema).__name__}")
    return schema
