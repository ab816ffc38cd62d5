"""/v1/completions, /tokenize and /detokenize: what is asked."""

from __future__ import annotations

from pydantic import Field

from mlx_delta.server.models import Body, Json, Sampling, StreamOptions
from mlx_delta.server.openai_chat_models import ChatMessage, ChatTool


class CompletionRequest(Sampling):
    """OpenAI's completions. prompt: text or token ids, or several of them."""

    prompt: str | list[int] | list[str] | list[list[int]]
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = None
    best_of: int | None = None
    stream_options: StreamOptions | None = None


class TokenizeRequest(Body):
    """One of prompt (as vLLM has it), content (as llama-server has it), and messages."""

    prompt: str | None = None
    content: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[ChatTool] | None = None
    chat_template_kwargs: Json | None = None


class DetokenizeRequest(Body):
    tokens: list[int]
