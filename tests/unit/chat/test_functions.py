"""Typed Python functions as tools: schemas, and calls."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from mlx_delta.chat.functions import function_tool, load_functions, run_call
from mlx_delta.chat.tools import ToolCall, coerce_arguments


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


def forecast(
    city: str,
    days: int = 1,
    unit: Unit = Unit.CELSIUS,
    hours: list[int] | None = None,
    *,
    style: Literal["short", "long"] = "short",
) -> str:
    """Weather of the next days.

    Not of the past ones.

    Args:
        city (str): City, such as
            Zürich: the name alone
        days: How many
        unit: Of the temperature

    Returns:
        text: the forecast
    """
    return f"{city} {days} {unit.name} {hours} {style}"


def test_google_docstrings() -> None:
    function = function_tool(forecast)["function"]
    assert function["name"] == "forecast"
    assert function["description"] == "Weather of the next days. Not of the past ones."
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City, such as Zürich: the name alone"},
            "days": {"type": "integer", "description": "How many"},
            "unit": {"type": "string", "enum": ["c", "f"], "description": "Of the temperature"},
            "hours": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
            "style": {"type": "string", "enum": ["short", "long"]},
        },
        "required": ["city"],
    }


def test_sphinx_docstrings() -> None:
    def add(a: int, b: float) -> float:
        """Add two numbers.

        :param a: the first
            of them
        :param float b: the second
        :return: the sum
        """
        return a + b

    function = function_tool(add)["function"]
    assert function["description"] == "Add two numbers."
    properties = function["parameters"]["properties"]
    assert properties["a"] == {"type": "integer", "description": "the first of them"}
    assert properties["b"] == {"type": "number", "description": "the second"}


def test_no_docstring() -> None:
    def now() -> str:
        return "noon"

    assert function_tool(now)["function"]["description"] == ""
    assert run_call({"now": now}, ToolCall("now", {})) == "noon"


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (bool, {"type": "boolean"}),
        (float | None, {"type": ["number", "null"]}),
        (list, {"type": "array"}),
        (Sequence[str], {"type": "array", "items": {"type": "string"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (dict, {"type": "object"}),
        (
            dict[str, list[int]],
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}},
        ),
        (Annotated[int, "of them"], {"type": "integer"}),
        (Literal[1, "all"], {"type": ["integer", "string"], "enum": [1, "all"]}),
        (Any, {}),
    ],
)
def test_types(hint: Any, schema: dict[str, Any]) -> None:
    def f(x: Any) -> None: ...

    f.__annotations__["x"] = hint
    assert function_tool(f)["function"]["parameters"]["properties"] == {"x": schema}


def test_calls() -> None:
    schema = function_tool(forecast)["function"]["parameters"]
    written = {"city": "Bern", "days": "3", "unit": "f", "hours": "[6, 12]", "style": "long"}
    call = ToolCall("forecast", coerce_arguments(written, schema))
    assert run_call({"forecast": forecast}, call) == "Bern 3 FAHRENHEIT [6, 12] long"

    def units(one: Unit | None, many: list[Unit], mixed: Unit | int) -> str:
        return repr([one, many, mixed])

    values = {"one": "c", "many": ["f", "c"], "mixed": "c"}  # of several types, the value is left as it is
    expected = repr([Unit.CELSIUS, [Unit.FAHRENHEIT, Unit.CELSIUS], "c"])
    assert run_call({"units": units}, ToolCall("units", values)) == expected

    def echo(x: tuple[int, ...]) -> dict[str, Any]:
        return {"é": x, "kind": type(x).__name__}

    assert json.loads(run_call({"echo": echo}, ToolCall("echo", {"x": [1, 2]}))) == {"é": [1, 2], "kind": "tuple"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (ToolCall("nothing", {}), "error: unknown tool 'nothing': expected one of forecast"),
        (ToolCall("forecast", {}), "error: TypeError: missing a required argument: 'city'"),
        (ToolCall("forecast", {"city": "x", "no": 1}), "error: TypeError: got an unexpected keyword argument 'no'"),
        (ToolCall("forecast", {"city": "x", "unit": "k"}), "error: ValueError: 'k' is not a valid Unit"),
    ],
)
def test_wrong_calls_are_told_to_the_model(call: ToolCall, message: str) -> None:
    assert run_call({"forecast": forecast}, call) == message


def untyped(x):  # noqa: ANN001, ANN201
    return x


def variadic(*x: int) -> None: ...


def foreign(x: Path) -> None: ...


def keyed(x: dict[int, str]) -> None: ...


def mixed(x: tuple[int, str]) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, r"untyped\(x\): expected a type, found none"),
        (variadic, r"variadic\(x\): expected a parameter that can be given by name, found \*x"),
        (foreign, r"foreign\(x\): expected str, int, .* found <class 'pathlib\.Path'>"),
        (keyed, r"keyed\(x\): expected str, int, .* found dict\[int, str\]"),
        (mixed, r"mixed\(x\): expected str, int, .* found tuple\[int, str\]"),
    ],
)
def test_wrong_functions(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function_tool(function)


def test_load_functions(tmp_path: Path) -> None:
    file = tmp_path / "my tools.py"
    file.write_text(
        "from __future__ import annotations\nfrom json import dumps\nimport math\n"
        "def _hidden(x): ...\ndef half(x: float) -> float:\n    'Halve.'\n    return x / 2\n"
        "class Thing: ...\n"
    )
    functions = load_functions(file)
    assert list(functions) == ["half"]
    assert run_call(functions, ToolCall("half", {"x": 3})) == "1.5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a Python file, found nothing"),
        ("def f(:", "expected Python that runs, found SyntaxError"),
        ("1 / 0", "expected Python that runs, found ZeroDivisionError: division by zero"),
        ("x = 1", "expected typed functions to offer as tools, found none"),
        ("def f(x): ...", r"f\(x\): expected a type, found none"),
        ("def f(x: 'Nowhere'): ...", "f: expected types that can be resolved, found: name 'Nowhere' is not defined"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "tools.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_functions(file)
    assert str(file) in str(error.value)


@dataclasses.dataclass
class Place:
    name: str
    zoom: int = 3
    inside: Place | None = None


def mark(
    place: Place,
    when: datetime.date,
    times: Annotated[int, Field(ge=1, description="how often")] = 1,
    title: dict[str, Place] | None = None,
) -> str:
    """Mark a place.

    Parameters
    ----------
    place : Place
        Where it is
    when
        The day
    """
    return f"{place!r} {when:%d.%m.} {times} {title}"


def test_records_dates_and_constraints() -> None:
    """Dataclasses go to $defs, so that they may hold themselves; numpydoc's form of docstrings."""
    function = function_tool(mark)["function"]
    assert function["description"] == "Mark a place."
    parameters = function["parameters"]
    assert parameters["properties"] == {
        "place": {"$ref": "#/$defs/Place", "description": "Where it is"},
        "when": {"type": "string", "format": "date", "description": "The day"},
        "times": {"type": "integer", "minimum": 1, "description": "how often"},
        "title": {
            "anyOf": [{"type": "object", "additionalProperties": {"$ref": "#/$defs/Place"}}, {"type": "null"}],
        },
    }
    place = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "zoom": {"type": "integer", "default": 3},
            "inside": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None},
        },
        "required": ["name"],
    }
    assert parameters["$defs"] == {"Place": place}
    written = {"place": '{"name": "Ur", "inside": {"name": "Sumer"}}', "when": "2024-05-06", "times": "2"}
    call = ToolCall("mark", coerce_arguments(written, parameters))
    expected = f"{Place('Ur', 3, Place('Sumer'))!r} 06.05. 2 None"
    assert run_call({"mark": mark}, call) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"place": {"zoom": 2}, "when": "2024-05-06"},
            "error: ValueError: place.name: Field required, found {'zoom': 2}",
        ),
        ({"place": {"name": "x"}, "when": "May"}, "error: ValueError: when: Input should be a valid date"),
        (
            {"place": {"name": "x"}, "when": "2024-05-06", "times": 0},
            "error: ValueError: times: Input should be greater than or equal to 1, found 0",
        ),
    ],
)
def test_values_of_a_wrong_type_are_told_by_name(arguments: dict[str, Any], message: str) -> None:
    assert run_call({"mark": mark}, ToolCall("mark", arguments)).startswith(message)


def test_a_schema_says_its_type_first() -> None:
    """A prompt shows it as it is written."""
    properties = function_tool(forecast)["function"]["parameters"]["properties"]
    assert all(next(iter(properties[name])) == "type" for name in ("city", "days", "unit", "style"))
