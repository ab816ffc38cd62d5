"""What clients really send -> what chat templates accept; knows nothing of templates, tokens or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_delta.errors import ArgumentError

Message = Mapping[str, Any]


def prepare_messages(messages: Sequence[Message], *, strict: bool = False) -> list[Message]:
    """OpenAI-style messages, ready to render: the role ``developer`` counts as ``system``, and all system messages
    merge into one at the beginning, a blank line between them. The originals are left alone.

    strict: change nothing, so that the template itself refuses what it does not know.
    Raises: ArgumentError naming the message when one has no role, or holds an image or a video (this runs text only).
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages: expected a sequence of messages, found {messages!r:.80}")
    if not messages:
        raise ArgumentError("messages: expected at least one message, found none")
    for i, message in enumerate(messages):
        _check(message, f"messages[{i}]")
    if strict:
        return list(messages)
    system = [message for message in messages if _is_system(message)]
    others = [message for message in messages if not _is_system(message)]
    if not system:
        return others
    contents = [content for content in (_text(message.get("content")) for message in system) if content]
    return [{"role": "system", "content": "\n\n".join(contents)}, *others]


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _check(message: Any, where: str) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ArgumentError(f"{where}: expected a mapping with a role, found {message!r:.80}")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        for i, part in enumerate(content):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise ArgumentError(f"{where}.content[{i}]: expected a part with text, found {part!r:.80}")
    elif content is not None and not isinstance(content, str):
        raise ArgumentError(f"{where}.content: expected text or a list of parts, found {type(content).__name__}")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content)
