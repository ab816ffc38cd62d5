"""What may come next in a call that has to be made."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_delta.chat.forced import ForcedCall
from mlx_delta.chat.parse import OutputParser
from mlx_delta.chat.tools import create_tool_definition, parameter_schemas
from mlx_delta.text.tokenizer import Tokenizer
from support import TINY

HEAD = "<tool_call>\n<function=f>\n"
END = "</function>\n</tool_call>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(TINY)


def ways(tokenizer: Tokenizer, schema: dict[str, Any], written: str) -> set[str]:
    tool = create_tool_definition("f", "", {})
    tool["function"]["parameters"] = schema
    parser = OutputParser([tool], thinking=False)
    parser.push(HEAD + written)
    assert parser.reader is not None
    paths = ForcedCall(tokenizer, parameter_schemas([tool])).paths(parser.reader, (HEAD + written)[-1])
    return {tokenizer.decode(path) for path in paths}


A = {"a": {"type": "integer"}}
X: dict[str, Any] = {"^x": {}}
P = "\n</parameter>\n"


@pytest.mark.parametrize(
    ("schema", "written", "expected"),
    [
        ({"properties": {}}, "", {END}),
        ({"properties": A}, "", {"<parameter=a>\n", END}),
        ({"properties": A, "required": ["a"]}, "", {"<parameter=a>\n"}),
        ({"properties": A, "required": ["a"]}, "<parameter=a>\n3\n</parameter>\n", {END}),
        ({"properties": A, "required": ["a"]}, "<parameter=a>\n3\n</parameter>", {"\n" + END}),
        ({"properties": A, "required": ["b"]}, "<parameter=a>\n3\n</parameter>\n", {END}),
        ({"properties": A, "additionalProperties": False}, "<parameter=a>\n3\n</parameter>\n", {END}),
        ({"additionalProperties": {"type": "string"}}, "", set()),
        ({"properties": A, "patternProperties": X, "required": ["x"]}, "", {"<parameter=a>\n", "<parameter=x>\n"}),
        ({"properties": A, "additionalProperties": True, "required": ["a"]}, "<parameter=a>\n3\n</parameter>\n", set()),
        ({"allOf": [{"properties": A}, {"required": ["a"]}]}, "", {"<parameter=a>\n"}),
        (
            {"properties": {"a": {"type": "bool | null"}}},
            "<parameter=a>\n",
            {v + P for v in ("true", "false", "null")},
        ),
        ({"properties": {"a": {"enum": ["x", 1]}}}, "<parameter=a>\n", {"x" + P, "1" + P}),
        ({"properties": {"a": {"type": "string"}}}, "<parameter=a>\nx", set()),
        ({"properties": {"a": {"type": ["integer", "string"]}}}, "<parameter=a>\n", set()),
    ],
)
def test_ways_on(tokenizer: Tokenizer, schema: dict[str, Any], written: str, expected: set[str]) -> None:
    assert ways(tokenizer, schema, written) == expected


def test_numbers(tokenizer: Tokenizer) -> None:
    schema = {"properties": A}
    begun = ways(tokenizer, schema, "<parameter=a>\n")
    assert {"1", "-", "0"} <= begun
    assert all(text.lstrip("-").isdigit() or text == "-" for text in begun)
    after = ways(tokenizer, schema, "<parameter=a>\n12")
    assert "\n</parameter>\n" in after
    assert "3" in after
    assert "." not in after
    assert "." in ways(tokenizer, {"properties": {"a": {"type": "number"}}}, "<parameter=a>\n12")
    assert "\n</parameter>\n" not in ways(tokenizer, schema, "<parameter=a>\n-")
    assert ways(tokenizer, schema, "<parameter=a>\n0") == {"\n</parameter>\n"}


def test_an_unknown_tool_is_free(tokenizer: Tokenizer) -> None:
    parser = OutputParser([create_tool_definition("f", "", dict(A))], thinking=False)
    parser.push("<tool_call>\n<function=g>\n")
    assert parser.reader is not None
    assert ForcedCall(tokenizer, {}).paths(parser.reader, "\n") == []
