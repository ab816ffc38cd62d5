"""What requests of all APIs share. Unknown fields are ignored, null counts as left out, types are not converted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]


class Body(BaseModel):
    """A request, or a part of one."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Sampling(Body):
    """Fields of all requests that make text: the library's options, and what OpenAI's clients send besides."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Seed | None = None
    preset: str | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None


class StreamOptions(Body):
    include_usage: bool | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """What every refused request gets; the Anthropic paths wrap it as Anthropic's clients expect."""

    error: ErrorDetail


Json = dict[str, Any]
