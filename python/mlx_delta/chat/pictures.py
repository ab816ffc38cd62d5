"""Pictures and videos in messages, in every form that clients send, and the messages without their content.

    {"type": "image", "image": path, bytes, Pillow image or data: URL}    Hugging Face; "path", "url", "base64" too
    {"type": "image_url", "image_url": {"url": "data:.."}}                OpenAI, chat completions
    {"type": "input_image", "image_url": "data:.."}                       OpenAI, responses
    {"type": "image", "source": {"type": "base64", "data": ".."}}         Anthropic
    {"type": "video", "video": [frames], directory or file, "fps": 2}     Hugging Face

Nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_delta.chat.messages import Message
from mlx_delta.errors import ArgumentError
from mlx_delta.vision.media import Shown, from_base64

_TYPES = {"image": "image", "image_url": "image", "input_image": "image", "video": "video"}


def take_pictures(messages: Sequence[Message]) -> tuple[Sequence[Message], list[Shown]]:
    """The messages with nothing but {"type": "image"} or "video" in the places of what they show; and that, in order.

    What is no message is left for others to refuse.
    Raises: ArgumentError naming the part that has no picture, or one that would have to be fetched.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        return messages, []
    found: list[Shown] = []
    plain: list[Message] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            plain.append(message)
            continue
        parts: list[Any] = []
        for j, part in enumerate(content):
            shown = _shown(part, f"messages[{i}].content[{j}]")
            found += [] if shown is None else [shown]
            parts.append(part if shown is None else {"type": shown.kind})
        plain.append({**message, "content": parts} if parts != list(content) else message)
    return (plain, found) if found else (messages, [])


def refuse_paths(messages: Sequence[Message]) -> None:
    """For messages from elsewhere, a server's: what they show is in them, as data: URLs or base64, and in no file here.

    Raises: ArgumentError naming the part.
    """
    for shown in take_pictures(messages)[1]:
        for value in _values(shown.value):
            if not isinstance(value, bytes) and not (isinstance(value, str) and value[:5].lower() == "data:"):
                raise ArgumentError(f"{shown.where}: expected a data: URL, found {value!r:.60}")


def _values(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list | tuple) else (value,)


def _shown(part: Any, where: str) -> Shown | None:
    if not isinstance(part, Mapping):
        return None
    kind = _TYPES.get(part["type"]) if isinstance(part.get("type"), str) else None
    if kind is None and not isinstance(part.get("text"), str):  # the type left out
        kind = next((_TYPES[key] for key in ("image", "image_url", "video") if key in part), None)
    if kind is None:
        return None
    if kind == "video":
        if part.get("video") is None:
            raise ArgumentError(f"{where}: expected a video, found {_keys(part)}")
        return Shown(kind, part["video"], where, part.get("fps"))
    return Shown(kind, _picture(part, where), where)


def _picture(part: Mapping[str, Any], where: str) -> Any:
    source = part.get("source")
    if isinstance(source, Mapping):
        if source.get("type") == "url":
            return _url(source.get("url"), where)
        return _base64(source.get("data"), where)
    if part.get("image_url") is not None:
        url = part["image_url"]
        return _url(url.get("url") if isinstance(url, Mapping) else url, where)
    if part.get("base64") is not None:
        return _base64(part["base64"], where)
    if part.get("url") is not None:
        return _url(part["url"], where)
    value = part["image"] if part.get("image") is not None else part.get("path")
    if value is None:
        raise ArgumentError(f"{where}: expected a picture, found {_keys(part)}")
    return value


def _url(url: Any, where: str) -> str:
    if not isinstance(url, str) or url[:5].lower() != "data:":
        raise ArgumentError(f"{where}: expected a data: URL, for nothing is fetched, found {url!r:.60}")
    return url


def _base64(data: Any, where: str) -> bytes:
    if not isinstance(data, str):
        raise ArgumentError(f"{where}: expected base64, found {type(data).__name__}")
    return from_base64(data, where)


def _keys(part: Mapping[str, Any]) -> str:
    return f"a part with {', '.join(map(str, part))}"[:80]
