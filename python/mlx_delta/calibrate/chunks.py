"""Calibration text as chunks of tokens: plain text as it stands, chats through the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from mlx_delta.chat.request import render_prompt
from mlx_delta.errors import ArgumentError, MlxDeltaError, TextError
from mlx_delta.json_files import decode_utf8, parse_json
from mlx_delta.paths import expanded
from mlx_delta.text.tokenizer import Tokenizer

CONTEXT = 512  # tokens a chunk, llama.cpp's own


def read_chunks(
    files: Sequence[Path], tokenizer: Tokenizer, context: int = CONTEXT, max_chunks: int | None = None
) -> list[list[int]]:
    """Chunks of ``context`` tokens each, from each file in turn, so that the first ``max_chunks`` are a mix of all.

    A .jsonl file has a conversation a line, {"messages": [..], "tools": [..]}, rendered by the chat template, or
    {"text": ".."}; any other file is UTF-8 text, in which written-out special tokens count as such. Files are cut
    one by one, without regard to lines; what is left at the end of each, less than a chunk, is dropped.
    Raises: ArgumentError; TextError naming the file (and line).
    """
    if context < 2:
        raise ArgumentError(f"context: expected at least 2 tokens, found {context}")
    if max_chunks is not None and max_chunks < 1:
        raise ArgumentError(f"max_chunks: expected at least 1, found {max_chunks}")
    texts = [_chunks(file, tokenizer, context) for file in files]
    chunks = [chunk for chunk in chain.from_iterable(zip_longest(*texts)) if chunk is not None]
    return chunks[:max_chunks]


def _chunks(file: Path, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    ids = tokenizer.encode(read_text(file, tokenizer))
    if len(ids) < context:
        raise TextError(f"{file}: expected at least a chunk of {context} tokens, found {len(ids)}")
    return [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]


def read_text(file: Path, tokenizer: Tokenizer | None = None) -> str:
    """The text of ``file``, its conversations (.jsonl) rendered. Raises: TextError naming the file (and line)."""
    file = expanded(file, "file")
    try:
        content = decode_utf8(file.read_bytes(), str(file), TextError)
    except OSError as error:
        raise TextError(f"{file}: expected a text file, found {error.strerror}") from error
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if file.suffix != ".jsonl":
        return content
    lines = enumerate(content.split("\n"), start=1)  # not splitlines: a string may hold U+2028 as it stands
    return "".join(_rendered(line, tokenizer, f"{file}:{number}") for number, line in lines if line.strip())


def _rendered(line: str, tokenizer: Tokenizer | None, origin: str) -> str:
    entry = parse_json(line, origin, TextError)
    if isinstance(entry.get("text"), str):
        return entry["text"]
    if not isinstance(entry.get("messages"), list):
        raise TextError(f'{origin}: expected an object with "messages" or "text", found {line:.60}')
    if tokenizer is None or not tokenizer.chat_templates:
        raise TextError(f"{origin}: expected a model with a chat template, found none")
    try:
        tools = entry.get("tools")
        return render_prompt(tokenizer, entry["messages"], tools, add_generation_prompt=False, variables={})
    except MlxDeltaError as error:
        raise TextError(f"{origin}: {error}") from error
