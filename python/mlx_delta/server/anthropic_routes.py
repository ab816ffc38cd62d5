"""Anthropic's paths."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.server.anthropic_models import CountRequest, MessagesRequest
from mlx_delta.server.anthropic_question import question
from mlx_delta.server.anthropic_reply import MessageReply
from mlx_delta.server.models import Json
from mlx_delta.server.service import event_stream, json_response, service_of
from mlx_delta.server.sse import until_gone

router = APIRouter()


@router.post("/v1/messages")
async def messages(body: MessagesRequest, request: Request) -> Response:
    """An answer to Anthropic's messages: any model's name will do."""
    service = service_of(request)
    asked = question(body).checked(service)
    answers = await service.answers(request, asked.makes(service))
    single = bool(body.tool_choice and body.tool_choice.disable_parallel_tool_use)
    reply = MessageReply(body.model or service.name, answers.prompt_tokens, single_call=single)
    if body.stream:
        return event_stream(reply.frames(answers), answers, request.url.path, "error")
    return json_response(await until_gone(request, reply.whole(answers)))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountRequest, request: Request) -> Json:
    """How many tokens the prompt would have."""
    service = service_of(request)
    asked = question(body).checked(service)
    prompt = await service.runner.call(partial(asked.prompt, service.model, service.limits))
    return {"input_tokens": len(prompt.ids)}
