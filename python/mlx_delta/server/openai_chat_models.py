"""/v1/chat/completions: what is asked."""

from __future__ import annotations

from pydantic import Field

from mlx_delta.server.models import Body, Json, Sampling, StreamOptions


class FunctionCall(Body):
    name: str
    arguments: str | Json | None = None


class MessageCall(Body):
    id: str | None = None
    type: str | None = None
    function: FunctionCall


class ChatMessage(Body):
    """content: text, or parts: text, and images as data: URLs."""

    role: str
    content: str | list[Json] | None = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class FunctionDefinition(Body):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ChatTool(Body):
    type: str | None = None
    function: FunctionDefinition


class ChatRequest(Sampling):
    """OpenAI's chat completions, and what vLLM and llama-server take besides."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[ChatTool] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    response_format: Json | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream_options: StreamOptions | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = Field(None, ge=0)
    chat_template_kwargs: Json | None = None
