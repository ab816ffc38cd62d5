"""/v1/chat/completions: a question of it, and the answer, whole or in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_delta.chat.result import ChatEvent, ChatResult, TokenLogprob, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.server.models import Json
from mlx_delta.server.openai_chat_models import ChatMessage, ChatRequest, ChatTool
from mlx_delta.server.parts import parts_of
from mlx_delta.server.question import Question, effort_options, sampling_options
from mlx_delta.server.runner import Answers
from mlx_delta.server.sse import DONE, KEEP_ALIVE, Framed, frame
from mlx_delta.text.tokenizer import Tokenizer


def question(body: ChatRequest) -> Question:
    """Raises: RequestError naming the field."""
    options = sampling_options(body) | effort_options(body.reasoning_effort)
    variables = dict(body.chat_template_kwargs or {})
    thinking = variables.pop("enable_thinking", None)
    options |= {
        "max_new_tokens": body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        "response_format": body.response_format,
        "thinking_budget": body.thinking_budget,
        "template_variables": variables or None,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
    }
    thinking = body.enable_thinking if thinking is None else thinking
    if thinking is not None:
        options["enable_thinking"] = thinking
    options |= offered([tool(each) for each in body.tools or ()], body.tool_choice)
    return Question([message(each, f"messages[{i}]") for i, each in enumerate(body.messages)], options)


def message(given: ChatMessage, where: str) -> Json:
    content = given.content
    found: Json = {"role": given.role}
    found["content"] = parts_of(content, f"{where}.content") if isinstance(content, list) else content
    thoughts = given.reasoning_content if given.reasoning is None else given.reasoning
    further = {"name": given.name, "tool_call_id": given.tool_call_id, "reasoning_content": thoughts}
    found |= {key: value for key, value in further.items() if value is not None}
    if given.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": call.function.model_dump()} for call in given.tool_calls
        ]
    return found


def tool(given: ChatTool) -> Json:
    """As a template shows it: what was said, and nothing more."""
    return {"type": "function", "function": given.function.model_dump(exclude_unset=True, exclude={"strict"})}


def offered(tools: Sequence[Json], choice: str | Json | None) -> Json:
    """OpenAI's ``allowed_tools`` offers some of the tools, under a choice of its own."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if isinstance(allowed, dict) else None
        found = [each.get("function", each) for each in listed or () if isinstance(each, dict)]
        names = {each.get("name") for each in found if isinstance(each, dict)}
        tools = [each for each in tools if each["function"]["name"] in names]
        choice = allowed.get("mode")
    return {"tools": tools, "tool_choice": choice}


def usage_of(usages: Sequence[Usage]) -> Json:
    """Choices share their prompt, which counts once. What was drafted is told as OpenAI tells of predictions."""
    prompt, completion = usages[0].prompt_tokens, sum(each.completion_tokens for each in usages)
    details = {"reasoning_tokens": sum(each.thinking_tokens for each in usages)}
    drafted, accepted = (sum(getattr(each, f"{name}_tokens") for each in usages) for name in ("drafted", "accepted"))
    if drafted:
        details |= {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
        "completion_tokens_details": details,
    }


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def arguments_text(call: ToolCall) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def logprobs_of(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> Json:
    def entry(token: int, logprob: float) -> Json:
        return {
            "token": tokenizer.decode([token]),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token)),
        }

    return {
        "content": [
            {**entry(each.token, each.logprob), "top_logprobs": [entry(*pair) for pair in each.top]} for each in tokens
        ],
        "refusal": None,
    }


@dataclass
class ChatReply:
    """One request's answers. single_call: a model's first call of a tool ends its answer."""

    model: str
    tokenizer: Tokenizer
    fingerprint: str
    logprobs: bool = False
    single_call: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def chunks(self, answers: Answers) -> AsyncIterator[bytes]:
        """Frames, from the roles to ``[DONE]``."""
        count = answers.count
        calls, usages = [0] * count, [Usage()] * count
        yield b"".join([self._chunk(i, {"role": "assistant", "content": ""}) for i in range(count)])
        thought = {"reasoning_content": Framed.TEXT, "reasoning": Framed.TEXT}
        texts, thinking = (
            [Framed(self._data(i, delta)) for i in range(count)] for delta in ({"content": Framed.TEXT}, thought)
        )

        def frames_of(i: int, event: ChatEvent) -> Iterator[bytes]:
            if event.result is not None:
                usages[i] = event.result.usage
                if event.logprobs and self.logprobs:
                    yield self._chunk(i, {}, event)
                yield self._chunk(i, {}, reason=self._reason(event.result, calls[i]))
                return
            call = event.tool_call
            if call is not None and not (self.single_call and calls[i]):
                head = {"index": calls[i], "id": call_id(), "type": "function"}
                yield self._chunk(
                    i, {"tool_calls": [{**head, "function": {"name": call.name, "arguments": ""}}]}, event
                )
                rest = {"index": calls[i], "function": {"arguments": arguments_text(call)}}
                yield self._chunk(i, {"tool_calls": [rest]})
                calls[i] += 1
                if self.single_call:
                    answers.end(i)
            elif self.logprobs and event.logprobs:
                thoughts = {"reasoning_content": event.thinking, "reasoning": event.thinking}
                yield self._chunk(i, thoughts if event.thinking else {"content": event.text}, event)
            elif event.thinking:
                yield thinking[i](event.thinking)
            elif event.text:
                yield texts[i](event.text)

        async for piece in answers.frames(frames_of, KEEP_ALIVE):
            yield piece
        if self.include_usage:
            yield frame({**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(usages)})
        yield DONE

    async def whole(self, answers: Answers) -> Json:
        results: dict[int, ChatResult] = {}
        async for i, event in answers:
            if event.done:
                results[i] = event.result
            elif event.tool_call is not None and self.single_call:
                answers.end(i)
        ordered = [results[i] for i in range(answers.count)]
        choices = [self._choice(i, result) for i, result in enumerate(ordered)]
        usage = usage_of([result.usage for result in ordered])
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def _choice(self, index: int, result: ChatResult) -> Json:
        calls = result.tool_calls[:1] if self.single_call else result.tool_calls
        message: Json = {"role": "assistant", "content": result.text or (None if calls else ""), "refusal": None}
        if result.thinking:
            message |= {"reasoning_content": result.thinking, "reasoning": result.thinking}
        if calls:
            message["tool_calls"] = [
                {"id": call_id(), "type": "function", "function": {"name": c.name, "arguments": arguments_text(c)}}
                for c in calls
            ]
        logprobs = logprobs_of(result.logprobs, self.tokenizer) if self.logprobs else None
        reason = self._reason(result, len(calls))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _reason(self, result: ChatResult, calls: int) -> str:
        """An answer that was ended after its one call is whole."""
        if result.finish_reason == "interrupted":
            return "tool_calls" if calls and self.single_call else "stop"
        return result.finish_reason

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _chunk(
        self, index: int, delta: Mapping[str, Any], event: ChatEvent | None = None, reason: str | None = None
    ) -> bytes:
        logprobs = None
        if self.logprobs and event is not None and event.logprobs:
            logprobs = logprobs_of(event.logprobs, self.tokenizer)
        return frame(self._data(index, delta, logprobs, reason))

    def _data(
        self, index: int, delta: Mapping[str, Any], logprobs: Json | None = None, reason: str | None = None
    ) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}
