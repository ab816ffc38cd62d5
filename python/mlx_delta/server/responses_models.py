"""/v1/responses: what is asked."""

from __future__ import annotations

from pydantic import Field

from mlx_delta.server.models import Body, Json, Sampling


class ReasoningSettings(Body):
    effort: str | None = None
    summary: str | None = None


class TextSettings(Body):
    format: Json | None = None
    verbosity: str | None = None


class ResponsesRequest(Sampling):
    """OpenAI's responses. Tools that would run at OpenAI (of any type but ``function``) are left out."""

    input: str | list[Json]
    instructions: str | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    conversation: str | Json | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    metadata: Json | None = None
    chat_template_kwargs: Json | None = None
