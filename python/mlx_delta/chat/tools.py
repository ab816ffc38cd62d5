"""Tool definitions, tool calls, and arguments from text to values; knows nothing of prompts or of parsing output."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mlx_delta.errors import ArgumentError

_MAX_DEPTH = 16  # of references and alternatives followed in a schema; a cycle of references ends here


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
    def of(cls, schema: Mapping[str, Any]) -> Parameters:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return cls()
        required = schema.get("required")
        types = {name: set(_types(properties[name], schema, _MAX_DEPTH)) for name in properties}
        return cls(
            frozenset(properties),
            frozenset(required if isinstance(required, Sequence) else ()),
            frozenset(name for name in types if types[name] and types[name] <= _WORDLESS),
        )


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

    Raises: ArgumentError when a tool has no name.
    """
    schemas: dict[str, Mapping[str, Any]] = {}
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"tools[{i}]: expected a function with a name, found {tool!r:.80}")
        schemas[name] = function.get("parameters") or {}
    return schemas


def coerce_arguments(raw: Mapping[str, str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the model wrote them -> values of the types that the tool's JSON schema (an object's) gives them.

    A parameter that may only be a string, or of which the schema says nothing, stays as written. Where other types are
    allowed the text is read as JSON (and as Python's True, False and None, which templates print); text that is no
    value of an allowed type stays as written. Types come from type, const, enum, anyOf, oneOf, allOf and local $ref.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        properties = {}
    return {name: _coerce(text, set(_types(properties.get(name), schema, _MAX_DEPTH))) for name, text in raw.items()}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Names of the JSON types that ``schema`` allows; ``root`` is where its references point."""
    if not isinstance(schema, Mapping) or depth == 0:
        return
    declared = schema.get("type")
    if isinstance(declared, str):
        yield declared
    elif isinstance(declared, Sequence):
        yield from (name for name in declared if isinstance(name, str))
    elif "const" in schema:
        yield _type_of(schema["const"])
    elif isinstance(schema.get("enum"), Sequence):
        yield from map(_type_of, schema["enum"])
    else:
        if "$ref" in schema:
            yield from _types(_resolve(schema["$ref"], root), root, depth - 1)
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), Sequence):
                for alternative in schema[key]:
                    yield from _types(alternative, root, depth - 1)


def _resolve(reference: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a local reference such as ``#/$defs/Unit`` points to, or None."""
    found: Any = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


_PYTHON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def _type_of(value: Any) -> str:
    return _PYTHON_TYPES.get(type(value), "null")


def _coerce(text: str, types: set[str]) -> Any:
    if not types - {"string"}:
        return text
    try:
        value = _parse(text.strip())
    except (ValueError, RecursionError):
        return text
    kind = _type_of(value)
    if kind in types or (kind == "integer" and "number" in types):
        return value
    if kind == "number" and "integer" in types and value.is_integer():
        return int(value)
    return text


def _parse(text: str) -> Any:
    """JSON in the strict sense (no NaN, nothing infinite), or one of Python's three constants. Raises ValueError."""
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    return json.loads(text, parse_float=_finite, parse_constant=_refuse)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"expected a finite number, found {text}")
