"""OpenAI's paths."""

from __future__ import annotations

from datetime import datetime, timezone

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.errors import RequestError
from mlx_delta.server.models import Json
from mlx_delta.server.openai_chat import ChatReply, question
from mlx_delta.server.openai_chat_models import ChatRequest
from mlx_delta.server.service import Service, event_stream, json_response, service_of
from mlx_delta.server.sse import until_gone

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Json:
    """The one model, as clients of OpenAI and of Anthropic list them."""
    service = service_of(request)
    return {
        "object": "list",
        "data": [_model(service)],
        "has_more": False,
        "first_id": service.name,
        "last_id": service.name,
    }


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Json:
    service = service_of(request)
    if name != service.name:
        raise RequestError(404, f"model: expected {service.name}, found {name:.80}", code="model_not_found")
    return _model(service)


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """An answer to messages: any model's name will do."""
    service = service_of(request)
    asked = question(body).checked(service)
    reply = ChatReply(
        body.model or service.name,
        service.model.tokenizer,
        service.fingerprint,
        logprobs=bool(body.logprobs),
        single_call=body.parallel_tool_calls is False,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    answers = await service.answers(request, asked.makes(service, body.n))
    if body.stream:
        return event_stream(reply.chunks(answers), answers, request.url.path, None)
    return json_response(await until_gone(request, reply.whole(answers)))


def _model(service: Service) -> Json:
    positions = service.model.config.text.max_position_embeddings
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "mlx-delta",
        "max_model_len": positions,
        "type": "model",
        "display_name": service.name,
        "created_at": _rfc3339(service.created),
    }


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
