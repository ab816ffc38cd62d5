"""The application: all paths over one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from mlx_delta.language_model import LanguageModel
from mlx_delta.server import openai_routes
from mlx_delta.server.limits import Limits
from mlx_delta.server.models import ErrorReply, Json
from mlx_delta.server.replies import handle_errors
from mlx_delta.server.service import Service

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in (
        (400, "A field is wrong; the message begins with its name"),
        (401, "No key, or a wrong one"),
        (403, "Another site's page, or a host that is not served"),
        (413, "The body is too large"),
        (422, "More messages or tokens than are taken"),
        (429, "The queue is full; Retry-After says when to try again"),
    )
}


def create_app(model: LanguageModel, *, name: str, limits: Limits | None = None) -> FastAPI:
    """name: the model's, as /v1/models tells it."""
    service = Service(model, name, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.runner.stop()

    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="mlx-delta", version=version("mlx-delta"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    handle_errors(app)
    app.include_router(openai_routes.router, responses=_REFUSALS)

    @app.get("/health")
    async def health() -> Json:
        return {"status": "ok"}

    return app
