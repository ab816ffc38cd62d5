"""/v1/responses: an answer as items, whole or as the events that build them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from mlx_delta.chat.result import ChatResult, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.server.grown import GrownReply
from mlx_delta.server.models import Json
from mlx_delta.server.openai_chat import arguments_text, call_id
from mlx_delta.server.replies import refusal
from mlx_delta.server.responses_models import ResponsesRequest
from mlx_delta.server.runner import Answers
from mlx_delta.server.sse import KEEP_ALIVE, frame

_TEXT = "response.output_text"
_THOUGHT = "response.reasoning_text"


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


class ResponseReply(GrownReply):
    """One response as it grows."""

    THOUGHT, TEXT = "reasoning", "message"

    def __init__(self, model: str, body: ResponsesRequest) -> None:
        response: Json = {
            "id": _id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }
        super().__init__(response, single_call=body.parallel_tool_calls is False)
        self._number = 0
        self._open = False

    async def frames(self, answers: Answers) -> AsyncIterator[bytes]:
        for name in ("response.created", "response.in_progress"):
            yield self._frame({"type": name, "response": {**self.grown, "output": []}})
        try:
            async for piece in answers.frames(
                lambda _, event: map(self._frame, self._push(event, answers)), KEEP_ALIVE
            ):
                yield piece
        except Exception as error:
            told = refusal(error)
            self.grown |= {"status": "failed", "error": {"code": "server_error", "message": str(told)}}
            yield self._frame({"type": "response.failed", "response": self.grown})

    def _frame(self, data: Json) -> bytes:
        self._number += 1
        return frame({**data, "sequence_number": self._number - 1}, data["type"])

    def _grow(self, kind: str, text: str) -> list[Json]:
        events: list[Json] = []
        if not self._open or self._item["type"] != kind:
            events = [*self._close(), *self._begin(kind)]
        self._item["content"][0]["text"] += text
        more: Json = {"logprobs": []} if kind == "message" else {}
        name = _TEXT if kind == "message" else _THOUGHT
        return [*events, self._of_item(f"{name}.delta", content_index=0, delta=text, **more)]

    def _begin(self, kind: str) -> list[Json]:
        self._open = True
        if kind == "message":
            item: Json = {"id": _id("msg"), "type": "message", "role": "assistant"}
            part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": _id("rs"), "type": "reasoning", "summary": [], "encrypted_content": None}
            part = {"type": "reasoning_text", "text": ""}
        item |= {"status": "in_progress", "content": []}
        events = [self._add(item)]
        self._item["content"] = [dict(part)]
        return [*events, self._of_item("response.content_part.added", content_index=0, part=part)]

    def _call(self, call: ToolCall) -> list[Json]:
        text = arguments_text(call)
        head = {"id": _id("fc"), "type": "function_call", "call_id": call_id(), "name": call.name}
        events = [*self._close(), self._add({**head, "arguments": "", "status": "in_progress"})]
        self._item.update(arguments=text, status="completed")
        name = "response.function_call_arguments"
        return [
            *events,
            self._of_item(f"{name}.delta", delta=text),
            self._of_item(f"{name}.done", arguments=text, name=call.name),
            self._item_event("response.output_item.done"),
        ]

    def _close(self) -> list[Json]:
        if not self._open:
            return []
        self._open = False
        item = self._item
        item["status"] = "completed"
        (part,) = item["content"]
        name = _TEXT if item["type"] == "message" else _THOUGHT
        more: Json = {"logprobs": []} if name == _TEXT else {}
        return [
            self._of_item(f"{name}.done", content_index=0, text=part["text"], **more),
            self._of_item("response.content_part.done", content_index=0, part=dict(part)),
            self._item_event("response.output_item.done"),
        ]

    def _end(self, result: ChatResult) -> list[Json]:
        cut = result.finish_reason == "length"
        self.grown |= {"status": "incomplete" if cut else "completed", "usage": _usage(result.usage)}
        if cut:
            self.grown["incomplete_details"] = {"reason": "max_output_tokens"}
        return [{"type": f"response.{self.grown['status']}", "response": self.grown}]

    def _add(self, item: Json) -> Json:
        self.grown["output"].append(dict(item))
        return self._item_event("response.output_item.added")

    def _item_event(self, name: str) -> Json:
        return {"type": name, "output_index": self._index, "item": dict(self._item)}

    def _of_item(self, kind: str, **more: Any) -> Json:
        return {"type": kind, "item_id": self._item["id"], "output_index": self._index, **more}

    @property
    def _index(self) -> int:
        return len(self.grown["output"]) - 1

    @property
    def _item(self) -> Json:
        item: Json = self.grown["output"][-1]
        return item


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
