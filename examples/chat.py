"""Ask one question, and print the answer: python examples/chat.py --model DIR "Why is the sky blue?"."""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx_delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="Hello, I am Dave.")
    parser.add_argument("--model", default=Path(__file__).parent / "tiny", help="default: the tiny example")
    arguments = parser.parse_args()

    model = mlx_delta.load_model(arguments.model)
    result = model.chat([{"role": "user", "content": arguments.question}], max_new_tokens=1024, seed=0)
    if result.thinking:
        print(f"(thought for {result.usage.thinking_tokens} tokens)")
    print(result.text)
    print(f"[{result.num_tokens} tokens, {result.usage.tokens_per_second:.0f} tok/s, {result.finish_reason}]")


if __name__ == "__main__":
    main()
