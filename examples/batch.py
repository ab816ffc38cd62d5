"""Answer several conversations at once. Each answer is the one that its conversation would get alone."""

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

    model = mlx_delta.load_model(arguments.model)
    conversations = [[{"role": "user", "content": question}] for question in arguments.questions]
    results = model.chat_batch(conversations, max_new_tokens=256, temperature=0)
    for question, result in zip(arguments.questions, results, strict=True):
        print(f"> {question}\n{result.text}")


if __name__ == "__main__":
    main()
