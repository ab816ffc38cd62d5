"""What every request passes on its way in and out: access, the size and the pace of its body, its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_delta.errors import RequestError
from mlx_delta.server.access import Access
from mlx_delta.server.limits import Limits
from mlx_delta.server.metrics import Metrics
from mlx_delta.server.replies import refusal, response_to

_log = logging.getLogger("mlx_delta.server.requests")
_QUIET = {"/health", "/metrics"}  # asked all the time


class Guard:
    """log_prompts: write requests' bodies to the log, too."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, metrics: Metrics, *, log_prompts: bool) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._limits, keep=self._log_prompts)
        try:
            try:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                self._access.check(scope["path"], headers)
                request.check_length(headers.get("content-length"))
            except (RequestError, HTTPException) as error:
                await response_to(refusal(error), scope["path"])(scope, receive, request.send)
                return
            await self._app(scope, request.receive, request.send)
        finally:
            self._tell(scope, request)

    def _tell(self, scope: Scope, request: _Request) -> None:
        seconds = time.monotonic() - request.begin
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.request(route, request.status, seconds)
        if scope["path"] in _QUIET:
            return
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": request.id,
            "client": (scope.get("client") or ("?",))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": request.status,
            "seconds": round(seconds, 3),
        }
        answers = scope["state"].pop("answers", None)
        if answers is not None:
            line |= answers.figures()
        if self._log_prompts:
            line["body"] = b"".join(request.body).decode(errors="replace")
        _log.info(json.dumps(line, ensure_ascii=False))


class _Request:
    """One request's body as it comes in, and its status as it goes out. status 499: the client went away before.

    keep: its bytes, in ``body``.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits, *, keep: bool) -> None:
        self.begin = time.monotonic()
        self.id = f"req_{secrets.token_hex(12)}"
        self.status = 499
        self.body: list[bytes] = []
        self._receive, self._send = receive, send
        self._limits = limits
        self._keep = keep
        self._size = 0
        self._whole = False
        scope.setdefault("state", {})

    def check_length(self, length: str | None) -> None:
        if length is not None and length.isdecimal() and int(length) > self._limits.body_bytes:
            self._refuse(length)

    async def receive(self) -> Message:
        if self._whole:  # what follows is that the client goes away, sooner or later
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.read_seconds)
        except asyncio.TimeoutError:
            expected = f"body: expected more of it within {self._limits.read_seconds:g} s, found nothing"
            raise HTTPException(408, expected) from None
        if message["type"] != "http.request":
            return message
        self._whole = not message.get("more_body", False)
        part = message.get("body", b"")
        self._size += len(part)
        if self._size > self._limits.body_bytes:
            self._refuse(f"at least {self._size}")
        if self._keep:
            self.body.append(part)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            id = self.id.encode()
            message = {**message, "headers": [*message["headers"], (b"x-request-id", id), (b"request-id", id)]}
        await self._send(message)

    def _refuse(self, found: str) -> None:
        self._whole = True
        raise HTTPException(413, f"body: expected at most {self._limits.body_bytes} bytes, found {found}")
