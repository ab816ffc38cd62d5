"""/v1/messages: an answer as blocks, whole or as the events that build them."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from mlx_delta.chat.result import ChatResult, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.server.grown import GrownReply
from mlx_delta.server.models import Json
from mlx_delta.server.runner import Answers
from mlx_delta.server.sse import frame

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_PING = frame({"type": "ping"}, "ping")


class MessageReply(GrownReply):
    """One message as it grows. prompt_tokens: known before it begins. single_call: its first call of a tool ends it."""

    THOUGHT, TEXT = "thinking", "text"

    def __init__(self, model: str, prompt_tokens: int, *, single_call: bool) -> None:
        message: Json = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage(prompt_tokens=prompt_tokens)),
        }
        super().__init__(message, single_call=single_call)

    async def frames(self, answers: Answers) -> AsyncIterator[bytes]:
        yield frame({"type": "message_start", "message": {**self.grown, "content": []}}, "message_start")
        async for piece in answers.frames(
            lambda _, event: (frame(data, data["type"]) for data in self._push(event, answers)), _PING
        ):
            yield piece

    def _grow(self, kind: str, text: str) -> list[Json]:
        blocks: list[Json] = self.grown["content"]
        events: list[Json] = []
        if not blocks or blocks[-1]["type"] != kind:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events = [*self._close(), self._open(block)]
        blocks[-1][kind] += text
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _call(self, call: ToolCall) -> list[Json]:
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": {}}
        events = [*self._close(), self._open(block)]
        self.grown["content"][-1]["input"] = call.arguments
        text = json.dumps(call.arguments, ensure_ascii=False)
        return [*events, self._delta({"type": "input_json_delta", "partial_json": text})]

    def _open(self, block: Json) -> Json:
        self.grown["content"].append(dict(block))
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Json]:
        """Clients want thoughts signed; here nobody asks for the signature."""
        if not self.grown["content"]:
            return []
        events: list[Json] = []
        block = self.grown["content"][-1]
        if block["type"] == "thinking":
            block["signature"] = hashlib.sha256(block["thinking"].encode(errors="replace")).hexdigest()
            events.append(self._delta({"type": "signature_delta", "signature": block["signature"]}))
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _end(self, result: ChatResult) -> list[Json]:
        reason: str = _REASONS.get(result.finish_reason, "end_turn")
        if result.stop_string is not None:
            reason = "stop_sequence"
        elif self._calls and result.finish_reason == "interrupted":
            reason = "tool_use"
        end: dict[str, Any] = {"stop_reason": reason, "stop_sequence": result.stop_string}
        self.grown |= {**end, "usage": _usage(result.usage)}
        return [{"type": "message_delta", "delta": end, "usage": self.grown["usage"]}, {"type": "message_stop"}]

    @property
    def _index(self) -> int:
        return len(self.grown["content"]) - 1


def _usage(usage: Usage) -> Json:
    """Tokens of the prompt that were kept do not count as input there."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
