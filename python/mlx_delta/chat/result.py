"""What a chat gives back: events while it runs, a result in the end. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_delta.chat.tools import ToolCall


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a generated token was before sampling parameters. top: the likeliest (token, log probability)."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens: prompt_tokens = cached_tokens (kept from earlier turns) + prefilled_tokens (computed now).

    completion_tokens: generated, the end token not counted; thinking_tokens of them were thoughts. Of the
    drafted_tokens, accepted_tokens came true. Seconds are wall time: prefill up to the first token, decoding after it.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; the first token counts to the prompt."""
        return max(0, self.completion_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class ChatEvent:
    """One step of an answer: text, or thinking, or a tool call; the last event has ``done`` and the result instead.

    warning: what is wrong with this part, if anything. num_tokens: generated so far. logprobs: of the tokens since the
    event before, where they were asked for.
    """

    text: str = ""
    thinking: str = ""
    tool_call: ToolCall | None = None
    warning: str | None = None
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    done: bool = False
    result: ChatResult | None = None


@dataclass(frozen=True)
class ChatResult:
    """An answer. finish_reason: "stop", "tool_calls", "length", or "interrupted" when the stream was closed early.
    stop_string: the one of ``stop`` that ended it, if one did.

    Where the last message was the assistant's, and so was continued, text and thinking are what is new.
    """

    text: str
    thinking: str
    tool_calls: list[ToolCall]
    finish_reason: str
    num_tokens: int
    usage: Usage
    warnings: list[str] = field(default_factory=list)
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_string: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to append to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            calls = [{"name": call.name, "arguments": call.arguments} for call in self.tool_calls]
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message
