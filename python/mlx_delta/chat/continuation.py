"""A last message of the assistant that is continued: where a template's rendering of it has to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_delta.arch.base import Markup
from mlx_delta.chat.messages import Message, text_of
from mlx_delta.chat.template import THOUGHTS

END = "\U000f0001"  # a character for private use, which marks the end of what is written


def continues(message: Message, markup: Markup) -> bool:
    """Whether the answer goes on with this message: the assistant's, and not all of an answer, as a tool call is."""
    return message["role"] == "assistant" and not message.get("tool_calls") and bool(_parts(message, markup)[0].strip())


def is_empty(message: Message, markup: Markup) -> bool:
    """Whether the message opens an answer of which nothing is written."""
    return message["role"] == "assistant" and not message.get("tool_calls") and not _parts(message, markup)[0].strip()


def mark_end(messages: Sequence[Message], markup: Markup) -> tuple[list[Message], str]:
    """The messages with ``END`` behind what the last one has: its text, else its thoughts; and which that is.

    Thoughts may stand in the text too, between their tags or behind the opening one.
    """
    written, thoughts = _parts(messages[-1], markup)
    message: dict[str, Any] = {key: value for key, value in messages[-1].items() if key not in THOUGHTS}
    if thoughts is None:
        message |= {"content": "", "reasoning_content": written + END}
    else:
        message |= {"content": written + END, **({"reasoning_content": thoughts} if thoughts else {})}
    return [*messages[:-1], message], written


def _parts(message: Message, markup: Markup) -> tuple[str, str | None]:
    """What is written last, text or thoughts; and the thoughts before it, None where it is thoughts itself."""
    opening, closing = markup.thoughts
    text = text_of(message.get("content"))
    thoughts = next((message[key] for key in THOUGHTS if message.get(key) is not None), "")
    if not thoughts and text.lstrip().startswith(opening):
        thoughts, closed, text = text.lstrip().removeprefix(opening).partition(closing)
        thoughts, text = thoughts.strip("\n") if closed else thoughts.lstrip("\n"), text.lstrip("\n")
        if not closed:
            return thoughts, None
    return (text, thoughts) if text or not thoughts else (thoughts, None)
