"""The application: all paths over one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from mlx_delta.language_model import LanguageModel
from mlx_delta.server import anthropic_routes, completions_routes, openai_routes, page, responses_routes
from mlx_delta.server.access import Access
from mlx_delta.server.guard import Guard
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


def create_app(
    model: LanguageModel,
    *,
    name: str,
    limits: Limits | None = None,
    access: Access | None = None,
    speculate: bool | int | str | None = None,
    log_prompts: bool = False,
) -> FastAPI:
    """name: the model's, as /v1/models tells it. speculate: of all answers, as the library has it. log_prompts: write
    what is asked to the log.
    """
    service = Service(model, name, limits or Limits(), speculate)
    access = access or Access()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.runner.stop()

    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="mlx-delta", version=version("mlx-delta"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    handle_errors(app)
    app.add_middleware(Guard, access, service.limits, service.metrics, log_prompts=log_prompts)
    if access.origins:  # outermost: a browser reads refusals too
        app.add_middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=("GET", "POST"), allow_headers=("*",)
        )
    for routes in (openai_routes, responses_routes, completions_routes, anthropic_routes, page):
        app.include_router(routes.router, responses=_REFUSALS)

    @app.get("/health")
    async def health() -> Json:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        runner = service.runner
        text = service.metrics.text(runner.running, runner.waiting)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app
