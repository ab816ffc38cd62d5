"""/v1/messages: what is asked."""

from __future__ import annotations

from pydantic import Field

from mlx_delta.server.models import Body, Json


class TextBlock(Body):
    text: str


class AnthropicMessage(Body):
    """content: text, or blocks: text, image, thinking, tool_use, tool_result, document."""

    role: str
    content: str | list[Json]


class AnthropicTool(Body):
    """Tools of a type of their own run at Anthropic: they are left out."""

    name: str = Field(min_length=1)
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None


class AnthropicToolChoice(Body):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """type: enabled (with a budget), adaptive, or disabled."""

    type: str
    budget_tokens: int | None = Field(None, ge=0)


class OutputConfig(Body):
    format: Json | None = None


class CountRequest(Body):
    """What a prompt is made of."""

    model: str | None = None
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """Anthropic's messages. Without ``thinking`` a model does not think, as there."""

    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
