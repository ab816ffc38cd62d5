"""Messages to a prompt, by the checkpoint's own Jinja template; knows nothing of tokens, models or tool parsing.

The environment is that of Hugging Face ``utils/chat_template_utils.py`` (sandboxed, blocks trimmed, ``tojson`` without
ASCII or HTML escapes, ``raise_exception``, ``strftime_now``), so that templates run unmodified and render alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from mlx_delta.errors import TemplateError

_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


def render(
    template_source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] = _NO_VARIABLES,
) -> str:
    """The prompt that ``template_source`` makes of OpenAI-style ``messages``, strictly as the template has it.

    Arguments of assistant tool calls that are JSON strings, as OpenAI clients send them, are parsed first (in copies).
    variables: the template's free variables, such as ``{"enable_thinking": False}``; the named arguments win over them.

    Raises: TemplateError with the template's message, or naming the argument or the fault in the template.
    """
    context = {
        **variables,
        "messages": [_with_parsed_arguments(message, f"messages[{i}]") for i, message in enumerate(messages)],
        "tools": tools,
        "add_generation_prompt": add_generation_prompt,
    }
    template = _compile(template_source)
    try:
        return template.render(context)
    except TemplateError:
        raise
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise TemplateError(f"chat template: expected messages that it can render, found: {error}") from error


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template, line {error.lineno}: expected Jinja, found: {error.message}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes <, >, & and ' for HTML, which a model was never trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _with_parsed_arguments(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The message itself, or a copy whose tool calls have mappings for arguments."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return message
    return {**message, "tool_calls": [_parsed_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]}


def _parsed_call(call: Any, where: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed_call(call["function"], f"{where}.function")}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}  # clients send "" for a call without arguments
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise TemplateError(f"{where}.arguments: expected a JSON object, found {arguments!r:.80}")
    return {**call, "arguments": parsed}
