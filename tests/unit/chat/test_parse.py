"""The output parser and tool arguments: streams kept apart, whatever the pieces, and no tag in the text."""

import codecs
import json
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mlx_delta.chat.parse import Event, OutputParser
from mlx_delta.chat.tools import ToolCall, coerce_arguments, create_tool_definition, parameter_schemas
from support import GOLDEN

ADD = create_tool_definition("add", "Add", {"a": {"type": "integer"}, "b": {"type": "integer"}}, ["a", "b"])
WRITE = create_tool_definition("write", "Write", {"path": {"type": "string"}, "text": {"type": "string"}})
TOOLS = [ADD, WRITE, create_tool_definition("now", "Time", {})]

ADD_CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n-2\n</parameter>\n"
    "</function>\n</tool_call>"
)
NOW_CALL = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
WRITE_CALL = (
    "<tool_call>\n<function=write>\n<parameter=path>\na.xml\n</parameter>\n<parameter=text>\n"
    "<r>\n  <parameter>x</parameter>\n</tool_call> é 🦙 <think>\n\n</r>\n</parameter>\n</function>\n</tool_call>"
)
WRITTEN = "<r>\n  <parameter>x</parameter>\n</tool_call> é 🦙 <think>\n\n</r>"
ADDED, NOW = ToolCall("add", {"a": 1, "b": -2}), ToolCall("now", {})

# output, thinking at the start, text, thoughts, calls, number of warnings
CASES: list[tuple[str, bool, str, str, list[ToolCall], int]] = [
    ("Hello  world.\n", False, "Hello  world.\n", "", [], 0),
    ("hm\n\nso\n</think>\n\nYes.", True, "Yes.", "hm\n\nso", [], 0),
    ("<think>\nhm\n</think>\n\n  Yes.", False, "  Yes.", "hm", [], 0),
    ("<think>\nhm</think>ok</think>", True, "ok", "hm", [], 0),
    ("cut off", True, "", "cut off", [], 0),
    (f"I add.\n</think>\n\n{ADD_CALL}", True, "", "I add.", [ADDED], 0),
    (f"I add.\n{ADD_CALL}\n", True, "", "I add.", [ADDED], 0),
    (f"Sure.\n\n{ADD_CALL}\n{NOW_CALL}\n\nDone.", False, "Sure.\n\nDone.", "", [ADDED, NOW], 0),
    (WRITE_CALL, False, "", "", [ToolCall("write", {"path": "a.xml", "text": WRITTEN})], 0),
    (ADD_CALL.removesuffix("\n</tool_call>"), False, "", "", [ADDED], 0),
    (ADD_CALL.removeprefix("<tool_call>\n"), False, "", "", [ADDED], 0),
    (ADD_CALL.replace("\n</tool_call>", "\n") + NOW_CALL, False, "", "", [ADDED, NOW], 0),
    ("a <b> </b> 1 < 2 <tool> <thin <function <", False, "a <b> </b> 1 < 2 <tool> <thin <function <", "", [], 0),
    ("Use <tool_call> or <function=f>, hm\n</think>\nok", True, "ok", "Use <tool_call> or <function=f>, hm", [], 1),
    ("<tool_call>\n<function=no>\n</function>\n</tool_call>", False, "", "", [ToolCall("no", {})], 1),
    ("9\n</parameter>\n</function>\n</tool_call>", False, "9\n</parameter>\n</function>\n", "", [], 1),
    # malformed: all of it is text
    ('<tool_call>\n{"name": "add"}\n</tool_call>', False, '<tool_call>\n{"name": "add"}\n</tool_call>', "", [], 1),
    (
        "<tool_call><function=></function></tool_call>",
        False,
        "<tool_call><function=></function></tool_call>",
        "",
        [],
        1,
    ),
    (
        "<tool_call><function=add>1 2</function></tool_call>",
        False,
        "<tool_call><function=add>1 2</function></tool_call>",
        "",
        [],
        1,
    ),
    (
        "<tool_call>\n[]\n</tool_call>\nSorry, once more.",
        False,
        "<tool_call>\n[]\n</tool_call>\nSorry, once more.",
        "",
        [],
        1,
    ),
    (f"<tool_call>\noh\n{NOW_CALL}", False, "<tool_call>\noh\n", "", [NOW], 1),
    (f"{ADD_CALL[:60]}", False, ADD_CALL[:60], "", [], 1),
    ("Well <tool_cal", False, "Well <tool_cal", "", [], 1),
]


def parse(pieces: list[str], thinking: bool = False) -> list[Event]:
    """All events, adjacent text (or thinking) without a warning joined."""
    parser = OutputParser(TOOLS, thinking=thinking)
    joined: list[Event] = []
    for event in [event for piece in pieces for event in parser.push(piece)] + parser.finish():
        assert [event.text, event.thinking, event.tool_call].count(None) == 2
        last = joined[-1] if joined else Event()
        if event.warning or last.warning:
            joined.append(event)
        elif event.text is not None and last.text is not None:
            joined[-1] = Event(text=last.text + event.text)
        elif event.thinking is not None and last.thinking is not None:
            joined[-1] = Event(thinking=last.thinking + event.thinking)
        else:
            joined.append(event)
    return joined


@pytest.mark.parametrize(("output", "thinking", "text", "thoughts", "calls", "warnings"), CASES)
def test_cases(output: str, thinking: bool, text: str, thoughts: str, calls: list[ToolCall], warnings: int) -> None:
    events = parse([output], thinking)
    assert "".join(event.text or "" for event in events) == text
    assert "".join(event.thinking or "" for event in events) == thoughts
    assert [event.tool_call for event in events if event.tool_call] == calls
    assert sum(event.warning is not None for event in events) == warnings


def pieces(output: bytes, cuts: Sequence[int]) -> list[str]:
    """As a detokenizer gives them: a character shows once its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    parts = [decoder.decode(output[a:b]) for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    return [*parts, decoder.decode(b"", final=True)]


def assert_no_tag_leaks(events: list[Event]) -> None:
    for event in events:
        if event.warning is not None:
            return  # a broken call or tag, shown whole: this and what follows
        assert not re.search(r"</?(think|tool_call)>|<function=", event.text or "")


@pytest.mark.parametrize(("output", "thinking"), [case[:2] for case in CASES])
def test_pieces_do_not_matter(output: str, thinking: bool) -> None:
    """Split at every byte: in two, in three at random, and into single bytes."""
    whole, data = parse([output], thinking), output.encode()
    assert parse(pieces(data, range(1, len(data))), thinking) == whole
    for cut in range(1, len(data)):
        assert parse(pieces(data, [cut]), thinking) == whole
    rng = random.Random(output)
    for _ in range(20):
        cuts = sorted(rng.sample(range(len(data) + 1), k=min(5, len(data))))
        assert parse(pieces(data, cuts), thinking) == whole


FRAGMENTS = [
    *re.findall(r"<[^>]*>|[^<]+", WRITE_CALL),
    ADD_CALL,
    NOW_CALL,
    "<think>",
    "text ",
    "\n",
    "<",
    "</",
    "<tool_",
    "a > b",
    "é🦙",
    '{"x": 1}',
]


def test_random_outputs_leak_nothing(soak: bool) -> None:
    """1,000 outputs of fragments, 3,000 in a soak: whole, in equal pieces and (every fourth) in two at every byte."""
    rng = random.Random(1)
    tried = 0
    for number in range(3000 if soak else 1000):
        output = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 12)))
        thinking, data = rng.random() < 0.5, output.encode()
        whole = parse([output], thinking)
        assert_no_tag_leaks(whole)
        size = rng.randrange(1, 9)
        splits = [range(size, len(data), size), *([cut] for cut in range(1, len(data)) if number % 4 == 0)]
        for cuts in splits:
            assert parse(pieces(data, cuts), thinking) == whole, output
        tried += 1 + len(splits)
    assert tried > (49_000 if soak else 15_000)


def test_text_streams_at_once() -> None:
    parser = OutputParser((), thinking=True)
    streamed = [
        [event.thinking or event.text for event in parser.push(piece)]
        for piece in ("a", " b <", "/i>", "</think>\n\n", "x")
    ]
    assert streamed == [["a"], [" b"], [" </i>"], [], ["x"]]
    assert not parser.thinking


def test_calls_come_once_nothing_can_change_them() -> None:
    parser = OutputParser(TOOLS, thinking=False)
    head, tail = ADD_CALL.split("</function>")
    assert [event for char in head + "</function" for event in parser.push(char)] == []
    assert parser.calling
    assert not parser.called
    assert parser.push(">") == []  # </parameter></function> may follow: then these were quoted
    assert parser.called
    assert not parser.calling
    assert parser.push(tail) == []
    assert parser.push("\n<tool_call>") == [Event(tool_call=ADDED)]
    assert parser.push("\n<function=now>\n</function>\n</tool_call>") == []
    assert parser.finish() == [Event(tool_call=NOW)]


HOSTILE = [
    "<", "\n", "`", "```\n", "<tool_", "<tool_call>", "<function=now>", "</think>", "<think></think>", "<parameter ",
    "<tool_call><function=write><parameter=text>", f"{NOW_CALL} x ", "<function=now><parameter=p>x</tool_call> y ",
    "<tool_call><function=write><parameter=text></think>", f"<think>{NOW_CALL}</think>", "</parameter></function>",
]  # fmt: skip
INSIDE = [
    "</function> x ",
    "</parameter> x ",
    "<parameter=path>",
    "<parameter=p></parameter>",
    "</parameter><parameter=p>",
]
OPEN = "<tool_call><function=write><parameter=text>"


@pytest.mark.parametrize("output", [*(("", part) for part in HOSTILE), *((OPEN, part) for part in INSIDE)])
@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_linear_time(output: tuple[str, str], size: int) -> None:
    """Four times as much takes four times as long (quadratic: sixteen), in seconds of this process."""
    head, part = output

    def seconds(length: int) -> float:
        text = head + part * (length // len(part))
        cuts = [text[i : i + size] for i in range(0, len(text), size)]
        times = []
        for _ in range(3):
            parser = OutputParser(TOOLS, thinking=part.startswith("<think"))
            begin = time.process_time()
            for piece in cuts:
                parser.push(piece)
            parser.finish()
            times.append(time.process_time() - begin)
        return min(times)

    length = 4_000 if size == 1 else 16_000
    assert seconds(4 * length) < 8 * seconds(length) + 0.01


def test_golden_completions() -> None:
    """What HF's greedy decoding wrote for questions with tools: each is one call, of the right types."""
    entries = json.loads((GOLDEN / "tools.json").read_text(encoding="utf-8"))
    for entry in entries:
        parser = OutputParser(entry["tools"], thinking=entry["enable_thinking"])
        events = parser.push(entry["completion"].removesuffix("<|im_end|>")) + parser.finish()
        assert all(event.text is None and event.warning is None for event in events)
        (call,) = [event.tool_call for event in events if event.tool_call]
        assert call.name == entry["expected"]["name"]
        types = {name: type(value) for name, value in entry["expected"]["arguments"].items()}
        assert {name: type(value) for name, value in call.arguments.items()} == types
    assert len(entries) == 60


REFERENCES = {
    "$defs": {
        "Unit": {"enum": ["c", "f"], "type": "string"},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Box": {"type": "object"},
    }
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "true", "true"),
        ({"type": "string"}, " 12 ", " 12 "),
        ({}, "12", "12"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "12.0", 12),
        ({"type": "integer"}, "12.5", "12.5"),
        ({"type": "integer"}, "true", "true"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "7", 7),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "null", None),
        ({"type": "array"}, '["é", 1]', ["é", 1]),
        ({"type": "array"}, "[1", "[1"),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": "object"}, '\n{"a": {"b": null}}', {"a": {"b": None}}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "five", "five"),
        ({"anyOf": [{"type": "array", "items": {}}, {"type": "null"}]}, "[]", []),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": "2"}, "2", "2"),
        ({"$ref": "#/$defs/Unit"}, "1", "1"),
        ({"allOf": [{"$ref": "#/$defs/Box"}]}, "{}", {}),
        ({"$ref": "#/$defs/Loop"}, "1", "1"),
        ({"$ref": "#/$defs/None"}, "1", "1"),
    ],
)
def test_coerce_arguments(schema: dict[str, Any], text: str, value: object) -> None:
    found = coerce_arguments({"x": text}, {"type": "object", "properties": {"x": schema}, **REFERENCES})
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


def test_definitions() -> None:
    assert ADD["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    for form in (ADD, ADD["function"]):
        assert parameter_schemas([form]) == {"add": ADD["function"]["parameters"]}
    with pytest.raises(ValueError, match=r"required: expected names among a, found 'b'"):
        create_tool_definition("f", "", {"a": {}}, ["b"])
    with pytest.raises(ValueError, match=r"tools\[0\]: expected a function with a name"):
        parameter_schemas([{"type": "function"}])
