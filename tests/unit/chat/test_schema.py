"""Arguments by their schemas, against the package jsonschema: where it takes any reading of a text, it takes ours."""

from __future__ import annotations

import ast
import json
import random
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from mlx_delta.chat.schema import Schema
from mlx_delta.chat.tools import Parameters, coerce_arguments

DEFINITIONS: dict[str, Any] = {
    "Unit": {"enum": ["c", "f"], "type": "string"},
    "Count": {"type": "integer", "minimum": 1},
    "Loop": {"$ref": "#/$defs/Loop"},
    "Tree": {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["value"],
    },
    "a/b~c": {"type": "boolean"},
}
STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
SCHEMAS: list[Any] = [
    STRING,
    INTEGER,
    NUMBER,
    {"type": "boolean"},
    {"type": "null"},
    {"type": "array"},
    {"type": "object"},
    {"type": ["string", "null"]},
    {"type": ["integer", "null"]},
    {"type": ["array", "string"]},
    {"type": ["boolean", "number", "object"]},
    {},
    True,
    {"description": "anything"},
    {"properties": {"k": INTEGER}},
    {"required": ["k"]},
    {"items": INTEGER},
    {"minItems": 2},
    {"minimum": 5},
    {"pattern": "^a"},
    {"const": 1},
    {"const": "1"},
    {"const": True},
    {"const": None},
    {"const": [1, 2]},
    {"const": {"k": 1}},
    {"enum": [1, 2, None]},
    {"enum": ["1", "two", 3.0]},
    {"enum": [True, "yes"]},
    {"type": "integer", "enum": [1, 3]},
    {"anyOf": [INTEGER, STRING]},
    {"anyOf": [INTEGER, {"type": "null"}]},
    {"anyOf": [{"type": "string", "pattern": "^[0-9]{5}$"}, {"type": "integer", "maximum": 100}]},
    {"anyOf": [{"type": "array", "items": STRING}, {"type": "array", "items": INTEGER}]},
    {"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 5}, STRING]},
    {"oneOf": [{"properties": {"k": INTEGER}, "required": ["k"]}, {"properties": {"l": STRING}, "required": ["l"]}]},
    {"allOf": [INTEGER, {"minimum": 2}]},
    {"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "boolean"]}]},
    {"allOf": [{"$ref": "#/$defs/Count"}], "description": "a count"},
    {"not": STRING},
    {"not": {"const": "1"}},
    {"type": ["integer", "string"], "not": {"const": 1}},
    {"if": INTEGER, "then": {"minimum": 2}, "else": {"type": "array"}},
    {"type": "integer", "minimum": 2, "maximum": 3},
    {"type": "number", "exclusiveMinimum": 1, "multipleOf": 0.5},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 2},
    {"type": "array", "uniqueItems": True},
    {"type": "array", "contains": {"const": 1}},
    {"type": "array", "contains": STRING, "minContains": 2, "maxContains": 2},
    {"type": "array", "prefixItems": [INTEGER, STRING], "items": False},
    {"type": "object", "properties": {"k": INTEGER}, "additionalProperties": False},
    {"type": "object", "additionalProperties": INTEGER},
    {"type": "object", "patternProperties": {"^k": INTEGER}, "additionalProperties": STRING},
    {"type": "object", "propertyNames": {"maxLength": 1}},
    {"type": "object", "minProperties": 2},
    {"type": "object", "dependentRequired": {"k": ["l"]}},
    {"type": "object", "dependentSchemas": {"k": {"required": ["l"]}}},
    {"$ref": "#/$defs/Unit"},
    {"$ref": "#/$defs/Count"},
    {"$ref": "#/$defs/Tree"},
    {"$ref": "#/$defs/a~1b~0c"},
    {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
    {"anyOf": [{"$ref": "#/$defs/Count"}, {"$ref": "#/$defs/Unit"}, {"type": "null"}]},
]
TEXTS = [
    "", " ", "a", "c", "12", " 3 ", "1", "5", "15", "-1", "1.0", "2.5", "1e2", "+1", ".5", "12345", "NaN", "Infinity",
    "1,5", "0x10", "true", "False", "TRUE", "null", "None", "two", "yes", '"c"', "'c'", "[]", "[1]", "[1, 2]", "[1, 1]",
    "['a', 'b']", '["a", "b"]', '[1, "a"]', "(1, 2)", "[1, 2", "{}", '{"k": 1}', "{'k': 1}", "{'k': True, 'l': None}",
    '{"k": "x"}', '{"l": "x", "m": "y"}', '{"k": 1, "l": "x"}', '{"value": 1, "children": [{"value": 2}]}',
    "{'value': 1, 'children': [{}]}", "{1: 2}", "k: 1", "a, b", "\n[1]\n", '{"k": "a\nb"}', "9" * 5000, "[" * 2000,
    "'" * 99,
]  # fmt: skip


def plain(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "$defs": DEFINITIONS}


FORMS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "properties": plain,
    "$ref at the root": lambda s: {"$ref": "#/$defs/Root", "$defs": {**DEFINITIONS, "Root": plain(s)}},
    "$ref to $ref": lambda s: {
        "$ref": "#/$defs/A",
        "$defs": {**DEFINITIONS, "A": {"$ref": "#/$defs/B"}, "B": {"properties": {"x": s}}},
    },
    "allOf": lambda s: {"allOf": [{"properties": {"x": s}}, {"required": ["x"]}], "$defs": DEFINITIONS},
    "anyOf": lambda s: {
        "anyOf": [{"properties": {"x": s}, "required": ["x"]}, {"required": ["y"]}],
        "$defs": DEFINITIONS,
    },
    "oneOf": lambda s: {"oneOf": [{"properties": {"x": s}}, {"required": ["y"]}], "$defs": DEFINITIONS},
    "then": lambda s: {"if": {"required": ["x"]}, "then": {"properties": {"x": s}}, "$defs": DEFINITIONS},
    "additionalProperties": lambda s: {"type": "object", "additionalProperties": s, "$defs": DEFINITIONS},
    "patternProperties": lambda s: {"type": "object", "patternProperties": {"^x": s}, "$defs": DEFINITIONS},
    "twice": lambda s: {"properties": {"x": s}, "allOf": [{"properties": {"x": {}}}], "$defs": DEFINITIONS},
}


def readings(text: str) -> list[Any]:
    """What a text may be meant as: every one that somebody might think of."""
    found: list[Any] = [text]
    for read in (
        json.loads,
        ast.literal_eval,
        int,
        float,
        lambda t: {"true": True, "false": False, "null": None}[t.lower()],
    ):
        try:
            value = json.loads(json.dumps(read(text.strip()), allow_nan=False))
        except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
            continue
        found.append(value)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_what_any_reading_can_be_ours_is(form: str) -> None:
    """Some 3,000 pairs of schema and text, and a ninth of them in each place where a parameter's schema may stand."""
    texts = TEXTS if form == "properties" else TEXTS[len(form) % 9 :: 9]
    right = 0
    for schema in SCHEMAS:
        root = FORMS[form](schema)
        validator = jsonschema.Draft202012Validator(root)
        for text in texts:
            found = coerce_arguments({"x": text}, root)["x"]
            if any(validator.is_valid({"x": reading}) for reading in readings(text)):
                assert validator.is_valid({"x": found}), (schema, text, found)
                right += 1
    assert right > len(SCHEMAS) * len(texts) / 5


def test_validity_is_that_of_jsonschema() -> None:
    """Of every value that a text may mean, by every schema, and by schemas put together from them at random."""
    meant = {repr(value): value for text in TEXTS for value in readings(text)}
    values = [*meant.values(), 100, "aaaaa", {"k": 1, "l": 2}, [[1]], [1, True]]
    rng = random.Random(0)
    mixed = [{rng.choice(["allOf", "anyOf", "oneOf"]): rng.sample(SCHEMAS, rng.randrange(1, 4))} for _ in range(20)]
    mixed += [{"not": rng.choice(SCHEMAS)} for _ in range(5)]
    mixed += [{"type": "array", "items": rng.choice(SCHEMAS)} for _ in range(5)]
    for schema in [*SCHEMAS, *mixed]:
        root = plain(schema)
        validator = jsonschema.Draft202012Validator(root)
        ours = Schema(root)
        for value in values:
            assert ours.valid({"x": value}) == validator.is_valid({"x": value}), (schema, value)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "int"}, "3", 3),
        ({"type": "float"}, "3", 3),
        ({"type": "float"}, "3.0", 3.0),
        ({"type": "double"}, "+.5", 0.5),
        ({"type": "str"}, "3", "3"),
        ({"type": "text"}, "true", "true"),
        ({"type": "bool"}, "TRUE", True),
        ({"type": "dict"}, "{'k': (1, -2), 'n': null}", {"k": [1, -2], "n": None}),
        ({"type": "dict[str, int]"}, "{'k': 1}", {"k": 1}),
        ({"type": "list[str]"}, "['1',]", ["1"]),
        ({"type": "tuple"}, "(1, 'a')", [1, "a"]),
        ({"type": "STRING"}, "3", "3"),
        ({"type": "INTEGER"}, "3", 3),
        ({"type": "int | None"}, "None", None),
        ({"type": "Optional[int]"}, "null", None),
        ({"type": "Optional[int]"}, "3", 3),
        ({"type": "any"}, "3", "3"),
        ({"type": "widget"}, "[1]", "[1]"),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"type": "integer", "nullable": True}, "3", 3),
        ({"type": "string", "nullable": True}, "None", None),
        ({"type": "string", "nullable": True}, ' "a" ', ' "a" '),
        ({"anyOf": [{"type": "integer"}], "nullable": True}, "null", None),
        ({"type": "integer", "maximum": 5}, "7", 7),
        ({"type": "integer"}, "seven", "seven"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "string", "enum": ["a", "b"]}, ' "a"', "a"),
        ({"enum": ["a", "b"]}, " a\n", "a"),
        ({"type": "object"}, '{"code": "a\n\tb"}', {"code": "a\n\tb"}),
        ({"type": "object"}, '{"é": "\\u00e9", "n": 1e400}', '{"é": "\\u00e9", "n": 1e400}'),
        ({"type": "array"}, "[f(1)]", "[f(1)]"),
        ({"type": "array"}, "[1 + 1]", "[1 + 1]"),
        ({"type": "array"}, "['\\d', b'1']", "['\\d', b'1']"),
        ({"type": "array"}, "['\\d']", ["\\d"]),
        ({"type": "array"}, "(" * 300 + ")" * 300, "(" * 300 + ")" * 300),
        ({"properties": {"k": {}}}, "{'k': 1}", {"k": 1}),
        ({"items": {}}, "[1]", [1]),
        ({"pattern": "["}, "12", "12"),
        ({"$ref": "https://elsewhere/schema.json"}, "12", "12"),
        ({"$ref": "#/$defs/Inner", "$defs": {"Inner": {"type": "integer"}}}, "12", 12),
        ({"$ref": "#/definitions/Old"}, "12", 12),
        ({"$ref": "#/properties/y"}, "true", True),
        ({"$ref": "#named"}, "12", 12),
        ({"allOf": [{"$ref": "#/$defs/Twice"}, {"$ref": "#/$defs/Twice"}]}, "12", 12),
    ],
)
def test_lax_forms(schema: dict[str, Any], text: str, value: object) -> None:
    definitions = {"definitions": {"Old": {"type": "integer"}}, "$defs": {"N": {"$anchor": "named", "type": "integer"}}}
    definitions["$defs"]["Twice"] = {"anyOf": [{"$ref": "#/$defs/Twice"}, {"type": "integer"}]}
    root = {"type": "object", "properties": {"x": schema, "y": {"type": "boolean"}}, **definitions}
    found = coerce_arguments({"x": text}, root)["x"]
    assert found == value
    assert type(found) is type(value)


def test_parameters_together() -> None:
    """What one of them is may depend on another."""
    kinds = [
        {"properties": {"kind": {"const": "number"}, "x": {"type": "integer"}}},
        {"properties": {"kind": {"const": "word"}, "x": {"type": "string"}}},
    ]
    for root in ({"oneOf": kinds}, {"type": "object", "anyOf": kinds}):
        assert coerce_arguments({"kind": "number", "x": "12"}, root) == {"kind": "number", "x": 12}
        assert coerce_arguments({"kind": "word", "x": "12"}, root) == {"kind": "word", "x": "12"}


def test_names_of_parameters() -> None:
    root = {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"properties": {"a": {"type": "integer"}}, "required": ["a"], "anyOf": [{"$ref": "#/$defs/B"}]}},
    }
    root["$defs"]["B"] = {
        "properties": {"b": {"enum": ["x", "y"]}, "c": {"type": ["integer", "string"]}},
        "required": ["b"],
    }
    assert Parameters.of(Schema(root)) == Parameters(frozenset("abc"), frozenset("a"), frozenset("ab"))
    for further in (
        {"additionalProperties": True},
        {"patternProperties": {"^x": {}}},
        {"additionalProperties": {"type": "string"}},
    ):
        assert Parameters.of(Schema({"properties": {"a": {}}, **further})).names is None
    assert Parameters.of(Schema({"properties": {"a": {}}, "additionalProperties": False})).names == frozenset("a")
    for nothing in ({}, {"type": "object", "properties": {}}, {"properties": None}, {"$ref": "#"}):
        assert Parameters.of(Schema(nothing)) == Parameters()


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, lambda n: "9" * n),
        ({"type": "number"}, lambda n: "9" * n + "x"),
        ({"type": "number"}, lambda n: "1e" + "9" * n),
        ({"type": "array"}, lambda n: "[" + "1," * n + "]"),
        ({"type": "array"}, lambda n: "[" * n),
        ({"type": "array"}, lambda n: "'a' " * n),
        ({"type": "object"}, lambda n: '{"a":' * n),
        ({"type": "array", "uniqueItems": True}, lambda n: json.dumps(list(range(n)))),
        ({"enum": [1, "x", [2]]}, lambda n: json.dumps(list(range(n)))),
        ({"$ref": "#/$defs/Tree"}, lambda n: "{'value': 1, 'children': [" + "{'value': 2}," * n + "]}"),
    ],
)
def test_linear_time(schema: dict[str, Any], text: Callable[[int], str]) -> None:
    """Eight times as much takes eight times as long (quadratic: 64), in seconds of this process."""

    def seconds(size: int) -> float:
        value, times = text(size), []
        for _ in range(2):
            begin = time.process_time()
            coerce_arguments({"x": value}, plain(schema))
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(4000) < 24 * seconds(500) + 0.02


def test_what_nests_too_deep_to_be_checked() -> None:
    """It is read all the same, or left as it was written; nothing raises."""
    schema = {"type": "array", "items": {"$ref": "#/properties/x"}}
    for depth in (50, 300, 900, 20_000):
        text = "[" * depth + "]" * depth
        found = coerce_arguments({"x": text}, plain(schema))["x"]
        assert found == text or type(found) is list
