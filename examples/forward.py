"""Logits instead of text: the likeliest next tokens after a prompt, and after each of several continuations of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx.core as mx

import mlx_delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Hello, I am")
    parser.add_argument("--continuations", nargs="*", default=[" Ada", " Bob"])
    parser.add_argument("--model", default=Path(__file__).parent / "tiny", help="default: the tiny example")
    arguments = parser.parse_args()

    model = mlx_delta.load_model(arguments.model)
    cache = model.make_cache()
    logits = model.forward([model.tokenizer.encode(arguments.prompt)], cache)  # [1, T, vocabulary]
    print(f"{arguments.prompt!r}: {likeliest(model, logits[0, -1])}")
    for text in arguments.continuations:
        branch = cache.copy()  # costs nothing: the prompt is computed once
        logits = model.forward([model.tokenizer.encode(text)], branch)
        print(f"{arguments.prompt + text!r}: {likeliest(model, logits[0, -1])}")


def likeliest(model: mlx_delta.LanguageModel, logits: mx.array, count: int = 3) -> str:
    probabilities = mx.softmax(logits.astype(mx.float32))
    tokens = mx.argsort(-probabilities)[:count].tolist()
    return ", ".join(f"{model.tokenizer.decode([token])!r} {probabilities[token].item():.2f}" for token in tokens)


if __name__ == "__main__":
    main()
