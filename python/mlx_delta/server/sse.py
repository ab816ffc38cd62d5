"""Server-sent events, and responses that end when their client goes away."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mlx_delta.errors import RequestError

T = TypeVar("T")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


_UTF8 = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ASCII = json.JSONEncoder(separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """UTF-8; with escapes where a text holds half of a surrogate pair, which has none."""
    try:
        return _UTF8(value).encode()
    except UnicodeEncodeError:
        return _ASCII(value).encode()


def frame(data: Any, event: str | None = None) -> bytes:
    """One event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + to_json(data) + b"\n\n"


class Framed:
    """Events that differ in one text: ``Framed(data)(text)`` is ``frame`` of ``data`` with the text in the places of
    ``Framed.TEXT``."""

    TEXT = secrets.token_hex(16)  # no client knows it

    def __init__(self, data: Any) -> None:
        self._parts = frame(data).split(to_json(self.TEXT))

    def __call__(self, text: str) -> bytes:
        return to_json(text).join(self._parts)


class EventStream(StreamingResponse):
    """A response of frames. They end at once when the client goes away, and whatever makes them is told. at_end: called
    then, or at the frames' own end, be it before the first: of a generator that has not begun nothing is run."""

    def __init__(self, frames: AsyncIterator[bytes], at_end: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx passes them on as they come
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._frames = frames
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._frames.aclose()  # type: ignore[attr-defined]  # they are a generator
            finally:
                self._at_end()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, or RequestError when the client goes away before: then it is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError(499, "the client has gone away")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
