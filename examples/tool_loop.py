"""Let a model call Python functions until it has its answer; here those of examples/tools.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tools

import mlx_delta

FUNCTIONS = {function.__name__: function for function in (tools.add, tools.set_alarm)}
MOST_ROUNDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="What is 457 + 998?")
    parser.add_argument("--model", default=Path(__file__).parent / "tiny", help="default: the tiny example")
    arguments = parser.parse_args()

    session = mlx_delta.load_model(arguments.model).session()
    messages = [{"role": "user", "content": arguments.question}]
    for _ in range(MOST_ROUNDS):
        result = session.chat(messages, tools=list(FUNCTIONS.values()), temperature=0, max_new_tokens=1024)
        messages.append(result.message)
        for call in result.tool_calls:
            answer = run(call.name, call.arguments)
            print(f"{call.name}({json.dumps(call.arguments)}) = {answer}")
            messages.append({"role": "tool", "content": answer})
        if not result.tool_calls:
            print(result.text)
            return


def run(name: str, arguments: dict[str, object]) -> str:
    """The function's result as text. What goes wrong is text too: the model can do something about it."""
    try:
        return str(FUNCTIONS[name](**arguments))
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
