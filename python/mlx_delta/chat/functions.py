"""Typed Python functions as tools: their schema from signature and docstring, and a call that gives text.

A parameter's description is what the docstring says of it, in Google's, Sphinx's or numpydoc's form; the tool's is what
stands before that.
"""

from __future__ import annotations

import enum
import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from mlx_delta.chat.tools import ToolCall, create_tool_definition
from mlx_delta.errors import ArgumentError

Function = Callable[..., Any]

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def function_tool(function: Function) -> dict[str, Any]:
    """The tool, in OpenAI's form, that a typed function is.

    Types: str, int, float, bool, None, list, tuple, dict, set of such, Literal, Enum, dates, dataclasses, TypedDict,
    pydantic's models, Optional and unions; pydantic's ``Annotated[int, Field(ge=0, description="..")]`` counts.
    Raises: ArgumentError naming the function and the parameter whose type is missing or none of these.
    """
    name = function.__name__
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ArgumentError(f"{name}: expected types that can be resolved, found: {error}") from error
    description, texts = _docstring(inspect.getdoc(function) or "")
    schemas: dict[str, dict[str, Any]] = {}
    records: dict[str, Any] = {}  # dataclasses and their like, by name
    required = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"{name}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ArgumentError(f"{where}: expected a parameter that can be given by name, found {parameter}")
        if parameter.name not in hints:
            raise ArgumentError(f"{where}: expected a type, found none")
        schema = _schema(hints[parameter.name], where)
        records |= schema.pop("$defs", {})
        if parameter.name in texts:
            schema["description"] = texts[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        schemas[parameter.name] = schema
    tool = create_tool_definition(name, description, schemas, required)
    if records:
        tool["function"]["parameters"]["$defs"] = records
    return tool


def load_functions(path: Path) -> dict[str, Function]:
    """The public functions that the Python file defines itself, by name; the file is run.

    Raises: ArgumentError naming the file: it does not run, or defines no function; OSError.
    """
    if not path.is_file():
        raise ArgumentError(f"{path}: expected a Python file, found {'a directory' if path.is_dir() else 'nothing'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{path}: expected a Python file, found the suffix {path.suffix!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ArgumentError(f"{path}: expected Python that runs, found {type(error).__name__}: {error}") from error
    functions: dict[str, Function] = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if not functions:
        raise ArgumentError(f"{path}: expected typed functions to offer as tools, found none")
    try:
        for function in functions.values():
            function_tool(function)
    except ValueError as error:
        raise ArgumentError(f"{path}: {error}") from error
    return functions


def run_call(functions: Mapping[str, Function], call: ToolCall) -> str:
    """What a tool says to the model: a string as it is, anything else as JSON, an exception as ``error: ...``."""
    function = functions.get(call.name)
    if function is None:
        return f"error: unknown tool {call.name!r}: expected one of {', '.join(functions)}"
    try:
        inspect.signature(function).bind(**call.arguments)
        hints = typing.get_type_hints(function, include_extras=True)
        value = function(**{name: _as_declared(value, hints[name], name) for name, value in call.arguments.items()})
    except (Exception, SystemExit) as error:  # whatever it is, the model can do something about it
        return f"error: {type(error).__name__}: {error}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_declared(value: Any, hint: Any, name: str) -> Any:
    """What the function wants where JSON has no such type: an Enum's member, a tuple, a date, a dataclass.

    Of several types, the value is left as it is.
    """
    options = _options(hint)
    if value is None or len(options) > 1:
        return value
    if isinstance(options[0], type) and issubclass(options[0], enum.Enum):
        return options[0](value)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise ValueError(f"{where}: {first['msg']}, found {first['input']!r:.80}") from None


def _options(hint: Any) -> list[Any]:
    """The types of a union, None not among them."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    return [option for option in typing.get_args(hint) if option is not type(None)]


# Kinds of pydantic's that no call can give; lax-or-strict: paths, addresses, patterns and other classes.
_NO_DATA = {"bytes", "callable", "complex", "generator", "is-instance", "is-subclass", "lax-or-strict"}


class _ToolSchema(GenerateJsonSchema):
    """JSON schema as tools have it: short, without titles, and only of what JSON can hold and a call can be given."""

    def generate_inner(self, schema: Any) -> dict[str, Any]:
        if schema["type"] in _NO_DATA:
            raise PydanticUserError(schema["type"], code=None)
        if schema["type"] == "enum":  # in place, not by reference
            return self._choices([member.value for member in schema["members"]])
        return super().generate_inner(schema)

    def sort(self, value: dict[str, Any], parent_key: str | None = None) -> dict[str, Any]:
        return value  # "type" first, as people write it: a prompt shows the schema as it is

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        return _without(super().model_schema(schema), "title")

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        return _without(super().dataclass_schema(schema), "title")

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        return _without(super().typed_dict_schema(schema), "title")

    def literal_schema(self, schema: Any) -> dict[str, Any]:
        return self._choices(schema["expected"])

    def list_schema(self, schema: Any) -> dict[str, Any]:
        found = super().list_schema(schema)
        return found if found["items"] else _without(found, "items")

    def tuple_schema(self, schema: Any) -> dict[str, Any]:
        items = [self.generate_inner(item) for item in schema["items_schema"]]
        if any(item != items[0] for item in items):
            raise PydanticUserError("a tuple of several types", code=None)
        return {"type": "array", **({"items": items[0]} if items and items[0] else {})}

    def set_schema(self, schema: Any) -> dict[str, Any]:
        return self.list_schema(schema)

    frozenset_schema = set_schema

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        if schema.get("keys_schema", {"type": "any"})["type"] not in ("str", "any"):
            raise PydanticUserError("a dict whose keys are no strings", code=None)
        found = super().dict_schema(schema)
        return _without(found, "additionalProperties") if found["additionalProperties"] is True else found

    @staticmethod
    def _choices(values: Sequence[Any]) -> dict[str, Any]:
        names = sorted({_TYPES[type(value)] for value in values if type(value) in _TYPES})
        return {"type": names[0] if len(names) == 1 else names, "enum": list(values)}


def _without(schema: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    try:
        return TypeAdapter(hint).json_schema(schema_generator=_ToolSchema, union_format="primitive_type_array")
    except PydanticUserError as error:
        raise ArgumentError(
            f"{where}: expected str, int, float, bool, None, list, dict, Literal, Enum or a union of such, found {hint}"
        ) from error


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring (Google's way, Sphinx's or numpydoc's) says of the function, and of each parameter."""
    parsed = docstring_parser.parse(text)
    description = " ".join((parsed.description or "").split())
    return description, {p.arg_name.lstrip("*"): " ".join((p.description or "").split()) for p in parsed.params}
