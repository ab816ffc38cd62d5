"""OpenAI's responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.server.models import Json
from mlx_delta.server.responses_models import ResponsesRequest
from mlx_delta.server.responses_question import messages_of, question
from mlx_delta.server.responses_reply import ResponseReply
from mlx_delta.server.runner import Answers
from mlx_delta.server.service import Service, event_stream, json_response, service_of
from mlx_delta.server.sse import until_gone

router = APIRouter()


@router.post("/v1/responses")
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """An answer to items: any model's name will do."""
    service = service_of(request)
    earlier: Sequence[Json] = ()
    if body.previous_response_id is not None:
        earlier = service.responses.get(body.previous_response_id, "previous_response_id", 400).messages
    asked = question(body, earlier).checked(service)
    answers = await service.answers(request, asked.makes(service))
    reply = ResponseReply(body.model or service.name, body)
    conversation = asked.messages[bool(body.instructions) :]
    if body.stream:
        return event_stream(_frames(service, reply, answers, conversation), answers, request.url.path, "error")
    response = await until_gone(request, reply.whole(answers))
    _keep(service, reply, conversation)
    return json_response(response)


@router.get("/v1/responses/{id}")
async def response(id: str, request: Request) -> Json:
    return service_of(request).responses.get(id).response


@router.delete("/v1/responses/{id}")
async def delete_response(id: str, request: Request) -> Json:
    service_of(request).responses.drop(id)
    return {"id": id, "object": "response", "deleted": True}


async def _frames(
    service: Service, reply: ResponseReply, answers: Answers, conversation: Sequence[Json]
) -> AsyncIterator[bytes]:
    async for each in reply.frames(answers):
        if reply.grown["status"] != "in_progress":  # kept before its client hears that it is whole
            _keep(service, reply, conversation)
        yield each


def _keep(service: Service, reply: ResponseReply, conversation: Sequence[Json]) -> None:
    if reply.grown["store"] and reply.grown["status"] != "failed":
        service.responses.keep(reply.grown, [*conversation, *messages_of(reply.grown["output"])])
