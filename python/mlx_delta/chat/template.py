"""Messages to a prompt, by the checkpoint's own Jinja template; knows nothing of tokens, models or tool parsing.

The environment is that of Hugging Face ``utils/chat_template_utils.py`` (sandboxed, blocks trimmed, ``tojson`` without
ASCII or HTML escapes, ``raise_exception``, ``strftime_now``, ``{% generation %}``), and so are messages (see
``render``), so that templates run unmodified and render alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
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

    First (in copies) arguments of assistant tool calls that are JSON strings, as OpenAI clients send them, are parsed;
    what is None is left out, but for the content; and thoughts count as ``reasoning_content`` where they go by another
    name (``thinking``, or ``reasoning`` as vLLM has it).
    variables: the template's free variables, such as ``{"enable_thinking": False}``; the named arguments win over them.

    Raises: TemplateError with the template's message, or naming the argument or the fault in the template.
    """
    context = {
        "documents": None,
        **variables,
        "messages": [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)],
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


def check_template(source: str) -> None:
    """Raises: TemplateError naming the line of a fault that is there whatever the messages are."""
    _compile(source)


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
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


class _Generation(jinja2.ext.Extension):
    """``{% generation %}..{% endgeneration %}`` marks what the model wrote, for training: here it is what is inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # the first is what templates read


def _plain(message: Any, where: str) -> Any:
    if not isinstance(message, Mapping):
        return message
    plain = {key: value for key, value in message.items() if value is not None or key == "content"}
    thoughts = next((plain[key] for key in THOUGHTS if key in plain), None)
    if thoughts is not None:
        plain = {"thinking": thoughts, **plain, "reasoning_content": thoughts}
    calls = plain.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        plain["tool_calls"] = [_parsed_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return plain


def _parsed_call(call: Any, where: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed_call(call["function"], f"{where}.function")}
    arguments = call.get("arguments")
    if arguments is None and "arguments" in call:
        return {**call, "arguments": {}}
    if not isinstance(arguments, str):
        return call
    try:
        # Clients send "" and "null" for a call without arguments.
        parsed = {} if arguments.strip() in ("", "null") else json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise TemplateError(f"{where}.arguments: expected a JSON object, found {arguments!r:.80}")
    return {**call, "arguments": parsed}
