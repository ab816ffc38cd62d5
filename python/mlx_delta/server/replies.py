"""Errors as clients of each API expect them, whatever was raised."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.errors import ArgumentError, MlxDeltaError, QueueFullError, RequestError
from mlx_delta.server.sse import to_json

_RETRY_SECONDS = 5
_ALTERNATIVE = re.compile(r"str|int|float|bool|[A-Z].*|.*[\[-].*")  # pydantic's names of a field's types
_log = logging.getLogger("mlx_delta.server")

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# The library's arguments by the fields that requests have for them.
_FIELDS = {
    "max_new_tokens": "max_tokens",
    "json_schema": "response_format",
    "enable_thinking": "chat_template_kwargs.enable_thinking",
    "template_variables": "chat_template_kwargs",
}


def refusal(error: Exception) -> RequestError:
    """Any error as one that a client is told; what is not the client's doing is logged, and told without details."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, QueueFullError):
        return RequestError(429, str(error), code="rate_limit_exceeded", retry_after=_RETRY_SECONDS)
    if isinstance(error, ArgumentError):
        name = error.argument
        field = _FIELDS.get(name, name)
        if "max_position_embeddings" in str(error):
            return RequestError(400, str(error), param=field, code="context_length_exceeded")
        return RequestError(400, field + str(error).removeprefix(name), param=field)
    if isinstance(error, MlxDeltaError):
        return RequestError(400, str(error))
    if isinstance(error, HTTPException):
        return RequestError(error.status_code, str(error.detail))
    _log.error("a request failed", exc_info=error)
    return RequestError(500, "the server failed: its log says why")


def invalid(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """What pydantic found first, by the field's name."""
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        found = f"{first['ctx']['error']} at {place[0]}"
        return RequestError(400, f"body: expected JSON, found an error: {found}", param="body")
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not _ALTERNATIVE.fullmatch(part):
            name += f".{part}" if name else part
    name = name or "body"
    if first["type"] == "missing":
        return RequestError(400, f"{name}: expected a value, found none", param=name)
    if name == "body" and isinstance(first["input"], bytes):
        return RequestError(400, "body: expected JSON, and content-type: application/json", param=name)
    return RequestError(400, f"{name}: {first['msg']}, found {first['input']!r:.80}", param=name)


def body_of(error: RequestError, path: str) -> dict[str, Any]:
    """The JSON that tells of it: Anthropic's clients look elsewhere than OpenAI's."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    if path.startswith("/v1/messages"):
        message = _too_long(error) if error.code == "context_length_exceeded" else str(error)
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def _too_long(error: RequestError) -> str:
    """In the words by which Claude Code knows that a conversation has to be compacted."""
    counts = re.findall(r"(?:less than|at most|found) (\d+)", str(error))
    return f"prompt is too long: {counts[-1]} tokens > {counts[0]} maximum ({error})"


def response_to(error: RequestError, path: str) -> Response:
    """The whole response. 499 is for logs: nobody reads it."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(to_json(body_of(error, path)), error.status, headers, media_type="application/json")


def handle_errors(app: FastAPI) -> None:
    """Make the app answer so, unknown paths and methods too."""

    async def any_error(request: Request, error: Exception) -> Response:
        return response_to(refusal(error), request.url.path)

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response_to(invalid(error.errors()), request.url.path)

    app.add_exception_handler(RequestValidationError, invalid_request)
    for kind in (MlxDeltaError, HTTPException, Exception):
        app.add_exception_handler(kind, any_error)
