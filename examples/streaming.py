"""Print an answer as it comes, thoughts in brackets, over the turns of one session: each computes only what is new."""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx_delta

QUESTIONS = ("Hello, I am Dave.", "Count to 7.", "What is the capital of Japan?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", default=Path(__file__).parent / "tiny", help="default: the tiny example")
    arguments = parser.parse_args()

    session = mlx_delta.load_model(arguments.model).session()
    messages = []
    for question in arguments.questions:
        print(f"> {question}")
        messages.append({"role": "user", "content": question})
        thinking = False
        for event in session.chat_stream(messages, max_new_tokens=1024, seed=0):
            if event.thinking and not thinking:
                print("[", end="")
            if thinking and not event.thinking:
                print("]")
            thinking = bool(event.thinking)
            print(event.thinking + event.text, end="", flush=True)
            if event.result is not None:  # the last event
                messages.append(event.result.message)
                usage = event.result.usage
                print(f"\n({usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were known)")


if __name__ == "__main__":
    main()
