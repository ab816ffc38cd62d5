"""What all routes share: the model, its name, the limits, what runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.chat.settings import GenerationSettings
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.limits import Limits
from mlx_delta.server.metrics import Metrics
from mlx_delta.server.models import Json
from mlx_delta.server.replies import body_of, refusal
from mlx_delta.server.responses_store import ResponseStore
from mlx_delta.server.runner import Answers, Make, Runner
from mlx_delta.server.sse import EventStream, frame, to_json, until_gone


@dataclass
class Service:
    """name: the model's, as clients see it. speculate: of all answers, as the library has it.

    Raises: ArgumentError naming what is wrong.
    """

    model: LanguageModel
    name: str
    limits: Limits
    speculate: bool | int | str | None = None
    runner: Runner = field(init=False)
    metrics: Metrics = field(init=False)
    responses: ResponseStore = field(default_factory=ResponseStore)
    created: int = field(default_factory=lambda: int(time.time()))
    fingerprint: str = f"mlx-delta-{version('mlx-delta')}"

    def __post_init__(self) -> None:
        GenerationSettings(speculate=self.speculate)  # checks it
        self.metrics = Metrics()
        self.runner = Runner(self.limits, self.metrics)

    async def answers(self, request: Request, makes: Sequence[Make]) -> Answers:
        """Accepted answers, unless the client goes away before; they are told in the log with the request."""
        for name in ("_body", "_json"):  # Starlette's, which live as long as the request: megabytes, with images
            vars(request).pop(name, None)
        answers = await until_gone(request, self.runner.start(makes))
        request.state.answers = answers
        return answers


def service_of(request: Request) -> Service:
    return request.app.state.service


def json_response(content: Json) -> Response:
    return Response(to_json(content), media_type="application/json")


def event_stream(frames: AsyncIterator[bytes], answers: Answers, path: str, error_event: str | None) -> EventStream:
    """A response of frames, at whose end all answers are ended. An error on the way is the last frame.

    error_event: its name, in APIs that name their events.
    """

    async def guarded() -> AsyncIterator[bytes]:
        try:
            async for each in frames:
                yield each
        except Exception as error:
            yield frame(body_of(refusal(error), path), error_event)
        finally:
            await frames.aclose()  # type: ignore[attr-defined]  # they are a generator

    return EventStream(guarded(), answers.close)
