"""Typed Python functions as tools: their schema from signature and docstring, and a call that gives text.

A parameter's description is what the docstring says of it, Google's way (``name: text`` under ``Args:``) or Sphinx's
(``:param name: text``); the tool's is what stands before that.
"""

from __future__ import annotations

import enum
import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_delta.chat.tools import ToolCall, create_tool_definition

Function = Callable[..., Any]

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?):\s*$", re.MULTILINE)
_GOOGLE = re.compile(r"^([ \t]+)\*{0,2}(\w+)[ \t]*(?:\([^)]*\))?:[ \t]*(.*(?:\n\1[ \t]+\S.*)*)", re.MULTILINE)
_SPHINX = re.compile(r"^\s*:param\s+(?:[\w\[\], |.]+\s)?(\w+):\s*(.*(?:\n\s+[^:\s].*)*)", re.MULTILINE)


def function_tool(function: Function) -> dict[str, Any]:
    """The tool, in OpenAI's form, that a typed function is.

    Types: str, int, float, bool, None, list, tuple, dict, set of such, Literal, Enum, Optional and unions.
    Raises: ValueError naming the function and the parameter whose type is missing or none of these.
    """
    name = function.__name__
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise ValueError(f"{name}: expected types that can be resolved, found: {error}") from error
    description, texts = _docstring(inspect.getdoc(function) or "")
    schemas: dict[str, dict[str, Any]] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"{name}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where}: expected a parameter that can be given by name, found {parameter}")
        if parameter.name not in hints:
            raise ValueError(f"{where}: expected a type, found none")
        schema = _schema(hints[parameter.name], where)
        if parameter.name in texts:
            schema["description"] = texts[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        schemas[parameter.name] = schema
    return create_tool_definition(name, description, schemas, required)


def load_functions(path: Path) -> dict[str, Function]:
    """The public functions that the Python file defines itself, by name; the file is run.

    Raises: ValueError naming the file: it does not run, or defines no function; OSError.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a Python file, found {'a directory' if path.is_dir() else 'nothing'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, found the suffix {path.suffix!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: expected Python that runs, found {type(error).__name__}: {error}") from error
    functions: dict[str, Function] = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if not functions:
        raise ValueError(f"{path}: expected typed functions to offer as tools, found none")
    try:
        for function in functions.values():
            function_tool(function)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return functions


def run_call(functions: Mapping[str, Function], call: ToolCall) -> str:
    """What a tool says to the model: a string as it is, anything else as JSON, an exception as ``error: ...``."""
    function = functions.get(call.name)
    if function is None:
        return f"error: unknown tool {call.name!r}: expected one of {', '.join(functions)}"
    try:
        inspect.signature(function).bind(**call.arguments)
        value = function(**_as_declared(function, call.arguments))
    except (Exception, SystemExit) as error:  # whatever it is, the model can do something about it
        return f"error: {type(error).__name__}: {error}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_declared(function: Function, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values of JSON where the function wants an Enum's member, a tuple or a set."""
    hints = typing.get_type_hints(function)
    return {name: _convert(value, hints[name]) for name, value in arguments.items()}


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        return value if value is None or len(options) > 1 else _convert(value, options[0])
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return origin(value)
    if isinstance(value, list):
        items = [_convert(item, arguments[0]) for item in value] if arguments else value
        return origin(items) if origin in (tuple, set, frozenset) else items
    return value


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if hint is Any:
        return {}
    if origin is typing.Literal:
        return _choices(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint])
    if origin in (typing.Union, types.UnionType):
        return _union([_schema(argument, where) for argument in arguments])
    container = origin or hint
    if container in (list, set, frozenset, tuple, Sequence):
        items = [argument for argument in arguments if argument is not ...]
        if len(set(items)) <= 1:
            return {"type": "array", **({"items": _schema(items[0], where)} if items else {})}
    if container in (dict, Mapping) and (not arguments or arguments[0] is str):
        return {"type": "object", **({"additionalProperties": _schema(arguments[1], where)} if arguments else {})}
    raise ValueError(
        f"{where}: expected str, int, float, bool, None, list, dict, Literal, Enum or a union of such, found {hint}"
    )


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    names = sorted({_TYPES[type(value)] for value in values if type(value) in _TYPES})
    return {"type": names[0] if len(names) == 1 else names, "enum": list(values)}


def _union(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if all(set(schema) == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": list(schemas)}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter."""
    sections = list(_SECTION.finditer(text))
    found = {}
    for section, end in zip(sections, [*(after.start() for after in sections[1:]), len(text)], strict=False):
        if section[1] in ("Args", "Arguments", "Parameters"):
            body = text[section.end() : end]
            found.update({match[2]: " ".join(match[3].split()) for match in _GOOGLE.finditer(body)})
    sphinx = list(_SPHINX.finditer(text))
    found.update({match[1]: " ".join(match[2].split()) for match in sphinx})
    end = min([match.start() for match in [*sections, *sphinx]], default=len(text))
    return " ".join(text[:end].split()), found
