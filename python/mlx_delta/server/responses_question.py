"""/v1/responses: from its items to messages as templates know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_delta.errors import RequestError
from mlx_delta.server.models import Json
from mlx_delta.server.openai_chat import offered
from mlx_delta.server.parts import parts_of
from mlx_delta.server.question import Question, effort_options, sampling_options
from mlx_delta.server.responses_models import ResponsesRequest


def question(body: ResponsesRequest, earlier: Sequence[Json]) -> Question:
    """earlier: the messages of the response that this one goes on from, its answer included.

    Raises: RequestError naming the field.
    """
    for name in ("background", "conversation"):
        if getattr(body, name):
            raise RequestError(400, f"{name}: expected nothing (it is not supported), found a value", param=name)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    new = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else messages_of(body.input)
    if not earlier and not new:
        raise RequestError(400, "input: expected at least one item, found none", param="input")
    return Question([*system, *earlier, *new], _options(body))


def _options(body: ResponsesRequest) -> Json:
    variables = dict(body.chat_template_kwargs or {})
    thinking = variables.pop("enable_thinking", None)
    options = sampling_options(body) | effort_options(body.reasoning.effort if body.reasoning else None)
    options |= {"max_new_tokens": body.max_output_tokens, "template_variables": variables or None}
    if thinking is not None:
        options["enable_thinking"] = thinking
    form = body.text.format if body.text else None
    if form is not None:  # the schema stands beside the type
        options["response_format"] = {**form, "json_schema": {"schema": form["schema"]}} if "schema" in form else form
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ()) if tool.get("type") == "function"]
    return options | offered(tools, body.tool_choice)


def _tool(tool: Json, where: str) -> Json:
    if not isinstance(tool.get("name"), str):
        raise RequestError(400, f"{where}.name: expected a name, found {tool.get('name')!r:.80}", param=f"{where}.name")
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def messages_of(items: Sequence[Json]) -> list[Json]:
    """Items of one turn of the assistant (reasoning, a message, calls) are one message. Items of other kinds, which
    tell of tools that run at OpenAI, are left out."""
    messages: list[Json] = []
    turn: Json | None = None
    for i, item in enumerate(items):
        where, kind = f"input[{i}]", item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            messages.append({"role": _text(item, "role", where), "content": _content(item, where)})
            turn = None
        elif kind == "function_call_output":
            output = item.get("output")
            content = parts_of(output, f"{where}.output") if isinstance(output, list) else _text(item, "output", where)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            turn = None
        elif kind in ("message", "reasoning", "function_call"):
            if turn is None or (kind != "function_call" and (turn["content"] or turn.get("tool_calls"))):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _add(turn, kind, item, where)
        elif kind == "item_reference":
            message = f"{where}.type: expected the item itself, found a reference: use previous_response_id"
            raise RequestError(400, message, param=f"{where}.type")
    return messages


def _add(turn: Json, kind: str, item: Json, where: str) -> None:
    if kind == "message":
        turn["content"] = _content(item, where)
    elif kind == "function_call":
        name, arguments = _text(item, "name", where), _text(item, "arguments", where)
        call = {"id": item.get("call_id"), "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.setdefault("tool_calls", []).append(call)
    else:
        parts = item.get("content") or item.get("summary") or []
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        thoughts = "".join(text for text in texts if isinstance(text, str))
        if thoughts:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thoughts


def _content(item: Json, where: str) -> Any:
    content = item.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) for part in content):
            raise RequestError(400, f"{where}.content: expected parts, found {content!r:.80}", param=f"{where}.content")
        return parts_of(content, f"{where}.content")
    return _text(item, "content", where)


def _text(item: Json, field: str, where: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        name = f"{where}.{field}"
        raise RequestError(400, f"{name}: expected text, found {value!r:.80}", param=name)
    return value
