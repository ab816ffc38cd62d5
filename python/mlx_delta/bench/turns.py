"""What a session computes again: ``python -m mlx_delta.bench.turns [--model DIR]``, ten turns with tools and thinking.

prefilled: tokens of the prompt that were computed. new: those beyond the longest beginning that it shares with what the
session had seen, which is the least that any cache could do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_delta.chat.request import ChatSettings, Prompt, common_prefix
from mlx_delta.chat.tools import create_tool_definition
from mlx_delta.example import example_checkpoint
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model

SAID = ("Search for velvet cloud.", "What is 12 + 30?", "Hello, I am Ada.", "Count to 7.", "Search for valley.")
TOOLS = [
    create_tool_definition("search", "Search the web", {"query": {"type": "string"}}, ["query"]),
    create_tool_definition("add", "Add", {"a": {"type": "integer"}, "b": {"type": "integer"}}, ["a", "b"]),
]
FOUND = "Three pages: the first about clouds over the valley, the second about velvet, the third about both. " * 3


@dataclass(frozen=True)
class Step:
    """A prompt: after the user's message (``tool`` false), or after a tool's result."""

    turn: int
    tool: bool
    prompt: int
    prefilled: int
    new: int
    seconds: float


def ten_turns(model: LanguageModel) -> Iterator[Step]:
    """Greedy, thinking in every turn, a call in three turns of five; calls are answered, up to three a turn."""
    session = model.session()
    asked: dict[str, Any] = {"tools": TOOLS, "temperature": 0, "max_new_tokens": 80, "logprobs": 0}
    messages: list[dict[str, Any]] = []
    seen: list[int] = []
    for turn, text in enumerate(SAID * 2, 1):
        messages.append({"role": "user", "content": text})
        for step in range(4):
            ids = Prompt.build(model.tokenizer, messages, ChatSettings(**asked)).ids
            wants_tool = step == 0 and text.startswith(("Search", "What"))
            choice = "required" if wants_tool else "auto" if step < 3 else "none"
            result = session.chat(messages, **asked, tool_choice=choice)
            usage = result.usage
            new = len(ids) - common_prefix(seen, ids)
            yield Step(turn, step > 0, len(ids), usage.prefilled_tokens, new, usage.prefill_seconds)
            seen = [*ids, *(p.token for p in result.logprobs)]
            messages.append(result.message)
            if not result.tool_calls:
                break
            messages += [{"role": "tool", "content": FOUND} for _ in result.tool_calls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=example_checkpoint(), help="default: the tiny example")
    steps = list(ten_turns(load_model(parser.parse_args().model)))
    print("turn  after            prompt  prefilled  new   share")
    for step in steps:
        after = "tool's result" if step.tool else "user's message"
        share = step.prefilled / step.prompt
        print(f"{step.turn:4}  {after:15} {step.prompt:7} {step.prefilled:10} {step.new:4} {share:7.1%}")
    prompt, prefilled, new = (sum(getattr(step, name) for step in steps) for name in ("prompt", "prefilled", "new"))
    print(f"all   {'':15} {prompt:7} {prefilled:10} {new:4} {prefilled / prompt:7.1%}")


if __name__ == "__main__":
    main()
