"""What clients really send -> what chat templates accept; knows nothing of templates, tokens or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_delta.chat.template import THOUGHTS
from mlx_delta.errors import ArgumentError
from mlx_delta.text.tokenizer import check_text

Message = Mapping[str, Any]


def prepare_messages(messages: Sequence[Message], *, strict: bool = False) -> list[Message]:
    """OpenAI-style messages, ready to render: the role ``developer`` counts as ``system``, and all system messages
    merge into one at the beginning, a blank line between them. The originals are left alone.

    strict: change nothing, so that the template itself refuses what it does not know.
    Raises: ArgumentError naming the message and the field when one has no role, a system message shows something
    (here ``{"type": "image"}`` or "video", see ``chat.pictures``), or what is of the wrong type or no text
    (``check_text``).
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
    contents = [content for content in (text_of(message.get("content")) for message in system) if content]
    return [{"role": "system", "content": "\n\n".join(contents)}, *others]


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _check(message: Any, where: str) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ArgumentError(f"{where}: expected a mapping with a role, found {message!r:.80}")
    content = message.get("content")
    if isinstance(content, list | tuple):
        for i, part in enumerate(content):
            shown = isinstance(part, Mapping) and part in ({"type": "image"}, {"type": "video"})
            if shown and message["role"] in ("system", "developer"):
                raise ArgumentError(f"{where}.content[{i}]: expected text in a system message, found {part['type']}")
            if not shown and (not isinstance(part, Mapping) or not isinstance(part.get("text"), str)):
                raise ArgumentError(f"{where}.content[{i}]: expected a part with text, found {part!r:.80}")
    elif content is not None and not isinstance(content, str):
        raise ArgumentError(f"{where}.content: expected text or a list of parts, found {type(content).__name__}")
    for key in THOUGHTS:
        if not isinstance(message.get(key, ""), str | None):
            raise ArgumentError(f"{where}.{key}: expected text, found {type(message[key]).__name__}")
    _check_calls(message.get("tool_calls"), f"{where}.tool_calls")
    check_texts(message, where)


def _check_calls(calls: Any, where: str) -> None:
    if calls is not None and not isinstance(calls, list | tuple):
        raise ArgumentError(f"{where}: expected a list, found {type(calls).__name__}")
    for i, call in enumerate(calls or ()):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ArgumentError(f"{where}[{i}]: expected a function with a name, found {call!r:.80}")
        if not isinstance(function.get("arguments"), str | Mapping | None):
            kind = type(function["arguments"]).__name__
            raise ArgumentError(f"{where}[{i}].function.arguments: expected a mapping or its JSON, found {kind}")


def check_texts(value: Any, where: str) -> None:
    """Every text in the value, however deep, and that none of it is bytes."""
    waiting = [(value, where)]
    while waiting:
        part, place = waiting.pop()
        if isinstance(part, str | bytes | bytearray):
            check_text(part, place)
        elif isinstance(part, Mapping):
            waiting += [(name, f"{place}: a name") for name in part]
            waiting += [(item, f"{place}.{name}") for name, item in part.items()]
        elif isinstance(part, list | tuple):
            waiting += [(item, f"{place}[{i}]") for i, item in enumerate(part)]


def text_of(content: Any) -> str:
    """Of a message: text as it is, or its parts together."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)
