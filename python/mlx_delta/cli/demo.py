"""``mlx-delta demo``: the tiny checkpoint that comes with the package, converted, chatted with and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mlx_delta.cli.console import stdout
from mlx_delta.cli.convert import convert
from mlx_delta.cli.pictures import show_picture
from mlx_delta.example import example_checkpoint, example_picture

if TYPE_CHECKING:
    from mlx_delta.language_model import LanguageModel

_QUESTION = "Count to 7."
_TOOL_QUESTION = "What is 457 + 998?"
_SPEED_PROMPT = 256  # tokens
_SPEED_TOKENS = 64


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Keep the converted model here.", show_default="a temporary one"),
    ] = None,
) -> None:
    """Convert the 11M-parameter example, chat with it, have it call tools and look at pictures, and print sizes and
    speeds.

    The example is a trained Qwen3.5 in miniature. Nothing is downloaded.

    mlx-delta demo

    mlx-delta demo --output tiny-unsloth
    """
    with tempfile.TemporaryDirectory(prefix="mlx-delta-demo-") as scratch:
        _run(example_checkpoint(), output or Path(scratch) / "tiny-unsloth")


def _run(source: Path, out: Path) -> None:
    from mlx_delta.loading import load_model

    console = stdout()
    console.rule(f"convert {source.name}: recipe unsloth, 3 bits, with its importance matrix")
    convert(
        source=str(source),
        out=out,
        quantize=True,
        recipe="unsloth",
        bits=None,
        group_size=64,
        imatrix=source / "imatrix.gguf",
        force=True,
    )
    model = load_model(out)
    console.rule("chat")
    _ask(console, model, _QUESTION, {})
    console.rule("a tool call")
    _ask(console, model, _TOOL_QUESTION, {"add": add})
    if find_spec("PIL") is not None:
        console.rule("pictures")
        _ask(console, model, "What is the capital of ", {}, "japan", "?")
        _ask(console, model, "Search for ", {"search": search}, "button", ".")
    console.rule("size and speed on this machine")
    console.print(_speeds([("official, bf16", source), ("unsloth, 3 bits", out)]))


def add(a: int, b: int) -> int:
    """Add two integers

    Args:
        a: First
        b: Second
    """
    return a + b


def search(query: str, limit: int = 5) -> str:
    """Search the web

    Args:
        query: Query
        limit: How many results
    """
    return f"one page about {query}"


def _ask(
    console: Console,
    model: LanguageModel,
    text: str,
    functions: Mapping[str, Callable[..., Any]],
    picture: str | None = None,
    end: str = "",
) -> None:
    """One greedy answer and its calls, as ``mlx-delta chat`` shows them. picture: stands between text and end."""
    from mlx_delta.cli.chat_turns import Conversation
    from mlx_delta.cli.chat_view import TerminalView

    question: str | list[Any] = text
    if picture is not None:
        file = example_picture(picture)
        question = [{"type": "text", "text": text}, {"type": "image", "image": file}, {"type": "text", "text": end}]
        text += f"[{file.name}]{end}"
        show_picture(console, file)
    console.print(f"> {text}", style="bold", markup=False)
    options = {"tools": list(functions.values()), "enable_thinking": False, "max_new_tokens": 80, "temperature": 0}
    Conversation(model, options, functions).answer(question, TerminalView(console), lambda call: True)


def _speeds(models: Sequence[tuple[str, Path]]) -> Table:
    from mlx_delta.loading import load_model
    from mlx_delta.summary import summarize

    table = Table("model", title=f"prefill of {_SPEED_PROMPT} tokens, then {_SPEED_TOKENS} decoded", box=box.SIMPLE)
    for name in ("size, text", "bits a weight", "bytes a token", "prefill tok/s", "decode tok/s"):
        table.add_column(name, justify="right")
    for name, path in models:
        summary = summarize(path)
        nbytes = sum(group.nbytes for group in summary.text_groups)
        bits = 8 * nbytes / sum(group.parameters for group in summary.text_groups)
        model = load_model(path)
        ids = (model.tokenizer.encode("def main(argv: list[str]) -> int:\n    return 0\n") * _SPEED_PROMPT)[
            :_SPEED_PROMPT
        ]
        model.generate(ids, max_new_tokens=2, temperature=0).text()  # once to warm up
        run = model.generate(ids, max_new_tokens=_SPEED_TOKENS, temperature=0)
        run.text()
        table.add_row(
            name,
            f"{nbytes / 1e6:.2f} MB",
            f"{bits:.2f}",
            f"{summary.bytes_per_token / 1e6:.2f} MB",
            f"{run.prompt_tokens_per_second:,.0f}",
            f"{run.tokens_per_second:,.0f}" if run.decode_seconds else "-",
        )
    return table
