"""/v1/messages: from its blocks to messages as templates know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_delta.errors import RequestError
from mlx_delta.server.anthropic_models import AnthropicTool, CountRequest, MessagesRequest
from mlx_delta.server.models import Json
from mlx_delta.server.parts import image_part
from mlx_delta.server.question import Question

# Claude Code's accounting, new with every request and not meant for the model: no prefix would ever be found again.
_ACCOUNTING = "x-anthropic-billing-header:"


def question(body: CountRequest) -> Question:
    """Raises: RequestError naming the field."""
    messages: list[Json] = []
    if body.system:
        texts = [body.system] if isinstance(body.system, str) else [block.text for block in body.system]
        system = "\n\n".join(text for text in texts if not text.startswith(_ACCOUNTING))
        messages.append({"role": "system", "content": system})
    for i, message in enumerate(body.messages):
        where = f"messages[{i}].content"
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            messages.append(_assistant(message.content, where))
        else:
            messages += _others(message.role, message.content, where)
    return Question(messages, _options(body))


def _options(body: CountRequest) -> Json:
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    options: Json = {"enable_thinking": thinking}
    if thinking and body.thinking is not None and body.thinking.budget_tokens is not None:
        options["thinking_budget"] = body.thinking.budget_tokens
    tools = [_tool(tool) for tool in body.tools or () if tool.type in (None, "custom")]
    options |= {"tools": tools, "tool_choice": _choice(body)}
    if body.output_config is not None and body.output_config.format is not None:
        options["response_format"] = body.output_config.format
    if isinstance(body, MessagesRequest):
        options |= {
            "max_new_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
        }
    return options


def _tool(tool: AnthropicTool) -> Json:
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": tool.input_schema or {"type": "object"}}}


def _choice(body: CountRequest) -> str | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise RequestError(400, "tool_choice.name: expected a tool's name, found none", param="tool_choice.name")
        return choice.name
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in kinds:
        message = f"tool_choice.type: expected auto, any, tool or none, found {choice.type!r:.80}"
        raise RequestError(400, message, param="tool_choice.type")
    return kinds[choice.type]


def _assistant(blocks: list[Json], where: str) -> Json:
    """One message with its text, its thoughts and its calls. Thoughts that only Anthropic can read are left out."""
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text":
            texts.append(_text(block, "text", f"{where}[{i}]"))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking", f"{where}[{i}]"))
        elif kind == "tool_use":
            name = _text(block, "name", f"{where}[{i}]")
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise _wrong(f"{where}[{i}].input", "an object", arguments)
            calls.append(
                {"id": block.get("id"), "type": "function", "function": {"name": name, "arguments": arguments}}
            )
    message: Json = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _others(role: str, blocks: list[Json], where: str) -> list[Json]:
    """A message of the user is several where results of tools are among its blocks."""
    messages: list[Json] = []
    parts: list[Json] = []
    for i, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            if parts:
                messages.append({"role": role, "content": parts})
                parts = []
            content = block.get("content")
            if isinstance(content, list):
                content = [_part(part, f"{where}[{i}].content[{j}]") for j, part in enumerate(content)]
            elif not isinstance(content, str | None):
                raise _wrong(f"{where}[{i}].content", "text or blocks", content)
            messages.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content or ""})
        else:
            parts.append(_part(block, f"{where}[{i}]"))
    return [*messages, {"role": role, "content": parts}] if parts else messages


def _part(block: Any, where: str) -> Json:
    kind = block.get("type") if isinstance(block, Mapping) else None
    source = block.get("source") if isinstance(block, Mapping) else None
    if kind == "text":
        return {"type": "text", "text": _text(block, "text", where)}
    if kind == "image" and isinstance(source, Mapping):
        if source.get("type") != "base64":
            raise _wrong(f"{where}.source.type", "base64 (nothing is fetched)", source.get("type"))
        return image_part(f"data:{source.get('media_type')};base64,{source.get('data')}", where)
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return {"type": "text", "text": _text(source, "data", f"{where}.source")}
    raise _wrong(f"{where}.type", "text, image, tool_result or a document of text", kind)


def _text(block: Mapping[str, Any], field: str, where: str) -> str:
    value = block.get(field)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{field}", "text", value)
    return value


def _wrong(where: str, expected: str, found: Any) -> RequestError:
    return RequestError(400, f"{where}: expected {expected}, found {found!r:.80}", param=where)
