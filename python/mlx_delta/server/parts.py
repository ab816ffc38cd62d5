"""The content of messages: what of it is passed on. Nothing is, that would open a file or a connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_delta.errors import RequestError

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def parts_of(content: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Parts of text as they are, images as ``image_url`` with a data: URL, whatever API they come from.

    Raises: RequestError naming the part.
    """
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type", "text")
    if isinstance(kind, str) and kind in _TEXTS:
        text = part.get(_TEXTS[kind])
        if not isinstance(text, str):
            raise RequestError(400, f"{where}.{_TEXTS[kind]}: expected text, found {text!r:.80}", param=where)
        return {"type": "text", "text": text}
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        return image_part(url, where)
    raise RequestError(400, f"{where}.type: expected text or image_url, found {kind!r:.80}", param=where)


def image_part(url: Any, where: str) -> dict[str, Any]:
    """An image in the request itself."""
    if not isinstance(url, str) or not url.startswith("data:"):
        found = f"{url!r:.40}"
        raise RequestError(400, f"{where}: expected an image as a data: URL, found {found}", param=where)
    return {"type": "image_url", "image_url": {"url": url}}
