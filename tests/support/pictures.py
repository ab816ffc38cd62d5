"""Conversations of tests/golden/vision as a program would have them, and the model that sees."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_delta import LanguageModel, load_model
from mlx_delta.vision.picture import decoded
from support import GOLDEN, TINY

DATA = GOLDEN / "vision"
EXPECTED: dict[str, Any] = json.loads((DATA / "vision.json").read_text())
ARRAYS = mx.load(str(DATA / "vision.safetensors"))


def frames(name: str) -> tuple[list[Any], float]:
    """A video's frames as Pillow images, and how many there are a second."""
    entry = next(entry for entry in EXPECTED["videos"] if entry["name"] == name)
    strip = decoded((DATA / f"video_{name}.png").read_bytes(), name)
    stack = strip.reshape(entry["frames"], *entry["frame_hw"], 3)
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in stack], entry["fps"]


def messages(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures as paths, videos as frames."""
    return [{**message, "content": _content(message["content"])} for message in conversation["messages"]]


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {**part, "image": DATA / part["image"]}
    if part["type"] == "video":
        video, fps = frames(part["video"])
        return {**part, "video": video, "fps": fps}
    return part


@lru_cache
def seeing() -> LanguageModel:
    """examples/tiny, in float32."""
    return load_model(TINY, "float32")
