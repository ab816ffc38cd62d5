"""Tool definitions, tool calls, and arguments from text to values; knows nothing of prompts or of parsing output."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mlx_delta.chat.schema import Schema
from mlx_delta.chat.schema_values import ALL, type_of
from mlx_delta.errors import ArgumentError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_LONGEST_NUMBER = 8000  # characters
_BRACKETS = re.compile(r"[\[\](){}]")
_MAX_LITERAL = 200_000  # characters of a Python literal, whose syntax tree takes some 100 bytes and a microsecond each
_MAX_DEPTH = 64  # of its brackets


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for: the tool's name and its arguments as Python values."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Parameters:
    """What a tool's schema says of its parameters' names. names: None where any will do. required: those that a call
    must give. wordless: those whose value cannot be free text."""

    names: frozenset[str] | None = None
    required: frozenset[str] = frozenset()
    wordless: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        return bool(name) and (self.names is None or name in self.names)

    def holds_text(self, name: str) -> bool:
        return name not in self.wordless

    @classmethod
    def of(cls, whole: Schema) -> Parameters:
        names = whole.names()
        parts = {name: whole.parameter(name) for name in names or ()}
        wordless = (name for name, part in parts.items() if whole.enumerated(part) or whole.types(part) <= _WORDLESS)
        return cls(names, whole.required(), frozenset(wordless))


_WORDLESS = {"integer", "number", "boolean", "null"}


def create_tool_definition(
    name: str, description: str, parameters: Mapping[str, Mapping[str, Any]], required: Sequence[str] = ()
) -> dict[str, Any]:
    """A tool in OpenAI's form. parameters: name -> JSON schema; required: names among them.

    Raises: ArgumentError when the name is empty or a required parameter is not defined.
    """
    if not name:
        raise ArgumentError("name: expected a tool's name, found ''")
    unknown = [parameter for parameter in required if parameter not in parameters]
    if unknown:
        raise ArgumentError(f"required: expected names among {', '.join(parameters)}, found {unknown[0]!r}")
    properties = {parameter: dict(schema) for parameter, schema in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def parameter_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Name -> JSON schema of the parameters ({} without one), of tools in OpenAI's form or its bare "function" part.

    Raises: ArgumentError when a tool has no name, one that no call could say, or another's.
    """
    schemas: dict[str, Mapping[str, Any]] = {}
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"tools[{i}]: expected a function with a name, found {tool!r:.80}")
        if any(sign in name for sign in "<>\r\n"):  # it stands between such in a call
            raise ArgumentError(f"tools[{i}]: expected a name without <, > and line breaks, found {name!r:.80}")
        if name in schemas:
            raise ArgumentError(f"tools[{i}]: expected a name of its own, found {name!r} a second time")
        schemas[name] = function.get("parameters") or {}
    return schemas


def coerce_arguments(raw: Mapping[str, str], schema: Mapping[str, Any] | Schema) -> dict[str, Any]:
    """Arguments as the model wrote them -> values of the types that the tool's JSON schema (an object's) gives them.

    A parameter that may only be a string, or of which the schema says nothing, stays as written. Else the text is read
    in every way that gives one of the allowed types: as JSON, as Python's literals, as a number, true, false or null in
    any case. The first reading that the schema takes counts; without any, the first of an allowed type (a number out
    of range, say); else the text stays as written. See ``schema`` for what of JSON Schema is known.
    """
    whole = schema if isinstance(schema, Schema) else Schema(schema)
    read = {name: _coerce(text, whole, whole.parameter(name)) for name, text in raw.items()}
    if read != raw and not whole.valid(read):
        for name, text in raw.items():  # another parameter may say that this one is text
            other = {**read, name: text}
            if whole.valid(other):
                return other
    return read


def misfits(arguments: Mapping[str, Any], schema: Schema) -> list[str]:
    """Names of the arguments that are none of the values that the tool's schema has for them."""
    parts = {name: schema.parameter(name) for name in arguments}
    return [name for name, part in parts.items() if part is not None and not schema.valid(arguments[name], part)]


def _coerce(text: str, whole: Schema, schema: Any) -> Any:
    if schema is None:
        return text
    types = whole.types(schema)
    wanted = types if types != ALL else whole.implied(schema)
    others = wanted - {"string"}
    if not others and whole.valid(text, schema):
        return text
    readings = []
    for value in _readings(text):
        if type_of(value) in others and whole.valid(value, schema):
            return value
        readings.append(value)
    for value in [text, *readings, text.strip()]:
        if whole.valid(value, schema):
            return value
    return next((value for value in readings if type_of(value) in others), text)


def _readings(text: str) -> Iterator[Any]:
    """The values that a text may mean, those of JSON first; 3.0 is 3.0, then 3."""
    text = text.strip()
    for read in (_json, _python, _constant, _number):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        yield value
        if isinstance(value, float) and value.is_integer():
            yield int(value)


def _json(text: str) -> Any:
    """In the strict sense (no NaN, nothing infinite), but for line breaks in strings."""
    return json.loads(text, parse_float=_finite, parse_constant=_refuse, strict=False)


def _constant(text: str) -> Any:
    constants = {"true": True, "false": False, "null": None, "none": None}
    return constants[text.lower()] if text.lower() in constants else _refuse(text)


def _number(text: str) -> float:
    """``+1``, ``.5``."""
    return _finite(text) if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) else _refuse(text)


def _python(text: str) -> Any:
    """Python's literals; JSON's constants may stand among them."""
    if len(text) > _MAX_LITERAL or _depth(text) > _MAX_DEPTH:
        return _refuse(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        return _literal(ast.parse(text, mode="eval").body)


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | bool | int)):
        return node.value
    if isinstance(node, ast.Constant) and isinstance(node.value, float) and math.isfinite(node.value):
        return node.value
    if isinstance(node, ast.Name):
        return _constant(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_literal(key) for key in node.keys if key is not None]
        if not any(isinstance(key, list | dict) for key in keys):
            keys = [key if isinstance(key, str) else json.dumps(key) for key in keys]
            return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    return _refuse(ast.dump(node)[:80])


def _depth(text: str) -> int:
    """How deep brackets nest, at most: Python's own parser has a stack."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"expected a value of JSON, found {text:.80}")
