"""What is a call, and what is not: tags missing, doubled, misspelt and astray; fences, drafts, quotations."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_delta.chat.parse import OutputParser
from mlx_delta.chat.tools import create_tool_definition

TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
SAVE = create_tool_definition("save", "", {"file": TEXT, "body": TEXT, "lines": INTEGER})
SUM = create_tool_definition("sum", "", {"x": INTEGER, "y": INTEGER}, ["x", "y"])
TOOLS = [SAVE, SUM, create_tool_definition("ping", "", {}), create_tool_definition("any", "", {})]
PING = "<tool_call>\n<function=ping>\n</function>\n</tool_call>"
Calls = list[tuple[str, dict[str, Any]]]


def save(body: str, file: str = "b.md") -> str:
    parameters = f"<parameter=file>\n{file}\n</parameter>\n<parameter=body>\n{body}\n</parameter>\n"
    return f"<tool_call>\n<function=save>\n{parameters}</function>\n</tool_call>"


def inside(body: str) -> str:
    return f"<tool_call>\n<function=save>\n{body}\n</function>\n</tool_call>"


def parsed(output: str, thinking: bool = False, *, size: int = 10**6, **options: Any) -> dict[str, Any]:
    parser = OutputParser(options.get("tools", TOOLS), thinking=thinking)
    events = [e for i in range(0, len(output), size) for e in parser.push(output[i : i + size])]
    events += parser.finish(cut=options.get("cut", False))
    return {
        "text": "".join(e.text or "" for e in events),
        "thinking": "".join(e.thinking or "" for e in events),
        "calls": [(e.tool_call.name, e.tool_call.arguments) for e in events if e.tool_call],
        "warnings": [e.warning for e in events if e.warning],
    }


def check(output: str, text: str, thoughts: str, calls: Calls, thinking: bool = False, **options: Any) -> list[str]:
    found = parsed(output, thinking, **options)
    assert found == {"text": text, "thinking": thoughts, "calls": calls, "warnings": found["warnings"]}
    for size in (1, 3, 8):
        assert parsed(output, thinking, size=size, **options) == found
    return found["warnings"]


MENDED = {
    "no end of a value": "<parameter=file>\nb.md",
    "no end of two": "<parameter=file>\nb.md\n<parameter=lines>\n4",
    "the first has an end": "<parameter=file>\nb.md\n</parameter>\n<parameter=lines>\n4",
    "the second has an end": "<parameter=file>\nb.md\n<parameter=lines>\n4\n</parameter>",
    "doubled end": "<parameter=file>\nb.md\n</parameter>\n</parameter>",
    "doubled ends": "<parameter=file>\nb.md\n</parameter>\n</parameter>\n</function>",
    "doubled beginnings": "<function=save>\n<parameter=file>\n<parameter=file>\nb.md\n</parameter>",
    "misspelt": "<parameter=file>\nb.md\n</parameter1>\n<parameter=lines>\n4\n</parameter",
    "misspelt otherwise": "<parameter=file>\nb.md\n</param>\n<parameter=lines>\n4\n</parameters>",
    "misspelt as its beginning": "<parameter=file>\nb.md\n<parameter>",
    "misspelt beginnings": '<parameter name="file">\nb.md\n</parameter>\n<parameter=lines\n4\n</parameter>',
    "stray before": "</parameter>\n<parameter=file>\nb.md\n</parameter>",
    "stray between": "<parameter=file>\nb.md\n</parameter>\n</function>\n<parameter=lines>\n4\n</parameter>",
    "stray inside": "<parameter=file>\nb.md\n</parameter>\n</arguments>",
    "stray behind": "<parameter=file>\nb.md\n</parameter>\n</function>\n</function_invocation>",
    "strange behind": "<parameter=file>\nb.md\n</parameter>\n</function>\n</invoke>",
    "the wrong end": "<parameter=file>\nb.md\n</function>\n<parameter=lines>\n4\n</parameter>",
    "text between": "<parameter=lines>\n4\n</parameter>\nand\n<parameter=file>\nb.md\n</parameter>",
    "given twice": "<parameter=file>\na.md\n</parameter>\n<parameter=file>\nb.md\n</parameter>",
}


@pytest.mark.parametrize("what", MENDED)
def test_mended(what: str) -> None:
    calls: Calls = [("save", {"file": "b.md", "lines": 4} if "lines" in MENDED[what] else {"file": "b.md"})]
    for before, behind in (("", ""), ("Well.\n\n", "\n"), (f"{PING}\n", f"\n{PING}")):
        around: Calls = [("ping", {})] if PING in before else []
        check(before + inside(MENDED[what]) + behind, before.strip() * (not around), "", [*around, *calls, *around])
    value = "<parameter=file>\nb.md\n</parameter>\n"
    for opening in (
        "<tool_call>\n<function=save>\n",
        "<function=save>\n",
        "<tool_calls><function=save>",
        "<tool_call>" * 2 + "<function=save>",
    ):
        for closing in (
            "</function>\n</tool_call>",
            "</function>",
            "</tool_call>",
            "</function\n</tool_call",
            "</func></tool_calls>",
        ):
            check(f"{opening}{value}{closing}\n\nDone.", "Done.", "", [("save", {"file": "b.md"})])


@pytest.mark.parametrize(
    "call",
    [
        "<tool_call><function=sum><parameter=x>1</parameter><parameter=y>2</parameter></tool_call>",
        "<tool_call><function=sum><parameter=x>1</parameter><parameter=y>2</parameter>",
        "<function=sum><parameter=x>1</parameter><parameter=y>2</parameter></function>",
        "<tool_call><function=sum><parameter=x>1<parameter=y>2</tool_call>",
        "<tool_call><function=sum><parameter=x>1<parameter=y>2</function>",
    ],
)
def test_no_call_swallows_the_next(call: str) -> None:
    done: Calls = [("sum", {"x": 1, "y": 2})]
    check(call * 2 + PING, "", "", [*done, *done, ("ping", {})])
    check(f"{call}\n{PING}\n{call}</tool_call>", "", "", [*done, ("ping", {}), *done])


@pytest.mark.parametrize(
    "body",
    [
        "A value ends with </parameter> here, a call with </function> or </tool_call>.",
        "one\n</parameter>\ntwo",
        "one\n</function>\n</tool_call>\ntwo",
        "one\n</parameter>\n</function>\n</tool_call>\ntwo",
        "</parameter>\n</function>\n</tool_call>",
        "one\n</parameter>\n<parameter=other>\ntwo",
        "one\n</parameter>\n<parameter=file>\ntwo",
        "<parameter=file>\nx\n</parameter>",
        "<parameter=other>x</parameter>",
        "one\n<parameter=lines>\nx\n</parameter>\n<parameter=other>\ny\n</parameter>\ntwo",
        save("inner"),
        f"Twice:\n{save('inner')}\n{save('more')}\nlike this.",
        save(f"Deep: {save('deeper')}"),
        "<tool_call><function=ping></function></tool_call>",
        "<tool_call> and <function=sum> begin a call, <parameter=x> a value",
        "<params>\n  <parameter name='x'>1</parameter>\n  <function>f</function>\n</params>\n</function>",
        "```\n<tool_call>\n```\n<think>no</think>\n</think> ~~~",
        "ends in </parameter>",
        "  white space \n\n\t",
        "",
    ],
)
def test_values_that_quote(body: str) -> None:
    meant = ("save", {"file": "b.md", "body": body})
    check(save(body), "", "", [meant])
    check(f"Well.\n\n{save(body)}\n{PING}\n\nSo.", "Well.\n\nSo.", "", [meant, ("ping", {})])
    last = "\n<parameter=lines>\n4\n</parameter>\n</function>\n</tool_call>"
    check(save(body).removesuffix("\n</function>\n</tool_call>") + last, "", "", [("save", {**meant[1], "lines": 4})])


def test_calls_that_are_cut_off_are_none() -> None:
    """Nowhere before an end of a call, though it be a quoted one: until more comes, nothing tells it from the end."""
    whole = save(f"See {PING} and\n</parameter>\n</function>\n</tool_call>\nmore.")
    quoted = whole.index("</function>", whole.index("and\n")) + len("</function>")
    for length in range(len("<tool_call>"), len(whole)):
        found = parsed(whole[:length], cut=True)
        assert bool(found["calls"]) == (length >= quoted)
        assert found["calls"] or found["text"] == whole[:length]


def test_values_cut_off_are_no_calls() -> None:
    for value in ("b.m", "b.md\n", "b.md\n</parameter", "b.md\n</para", f"see {PING}", "see\n</tool_call>\nand", ""):
        begun = f"<tool_call>\n<function=save>\n<parameter=file>\n{value}"
        check(begun, begun, "", [], cut=True)
        check(begun, "", begun.rstrip("\n"), [], True, cut=True) if not begun.endswith("\n") else None
    begun = "<tool_call>\n<function=sum>\n<parameter=x>\n1\n</parameter>\n"
    check(begun, begun, "", [])  # y is required
    check(f"{begun}<parameter=y>\n2\n</parameter>\n", "", "", [("sum", {"x": 1, "y": 2})])


def test_parameters_that_the_tool_does_not_have() -> None:
    """In the place of text they are taken for quoted, with a warning; a number cannot quote."""
    output = inside("<parameter=file>\nb.md\n</parameter>\n<parameter=mode>\nw\n</parameter>")
    held = "b.md\n</parameter>\n<parameter=mode>\nw"
    assert "mode" in check(output, "", "", [("save", {"file": held})])[0]
    output = inside("<parameter=lines>\n4\n</parameter>\n<parameter=mode>\nw\n</parameter>")
    assert "mode" in check(output, "", "", [("save", {"lines": 4, "mode": "w"})])[0]
    output = output.replace("=save>", "=any>")
    assert not check(output, "", "", [("any", {"lines": "4", "mode": "w"})])
    output = output.replace("=any>", "=other>")
    assert check(output, "", "", [("other", {"lines": "4", "mode": "w"})]) == ["unknown tool: 'other'"]


def test_a_value_that_the_schema_does_not_take_stays_and_is_told() -> None:
    told = ["save: the value of 'lines' is none that its schema takes"]
    for value in ("", "four", "[4]", "4.5"):
        output = inside(f"<parameter=lines>\n{value}\n</parameter>")
        found = parsed(output)
        assert (found["warnings"], found["calls"][0][1].keys()) == (told, {"lines"}), value
    assert not check(inside("<parameter=lines>\n4\n</parameter>"), "", "", [("save", {"lines": 4})])
    assert not check(inside("<parameter=file>\n\n</parameter>"), "", "", [("save", {"file": ""})])


@pytest.mark.parametrize("further", [True, {}, {"type": "string"}])
def test_a_schema_that_takes_further_parameters_is_believed(further: Any) -> None:
    tool = create_tool_definition("save", "", {"file": TEXT})
    tool["function"]["parameters"]["additionalProperties"] = further
    output = inside("<parameter=file>\nb.md\n</parameter>\n<parameter=mode>\nw\n</parameter>")
    assert not check(output, "", "", [("save", {"file": "b.md", "mode": "w"})], tools=[tool])


FENCES = [
    "```\n{}\n```", "```xml\n{}\n```", "~~~\n{}\n~~~", "````\n```\n{}\n```\n````", "  ```\n  {}\n  ```",
    "> ```\n> {}\n> ```", "```\n{}", "Like ```{}``` so", "1. Like:\n   ~~~ xml\n{}\n   ~~~",
    "```\n{}\n~~~\n{}\n```", "```\n``` no\n{}\n```",
]  # fmt: skip


def test_a_parameter_that_the_tool_has_not_is_told_wherever_it_stands() -> None:
    unknown, known = "<parameter=path>\na\n</parameter>", "<parameter=file>\nb\n</parameter>"
    told = ["save: the tool has no parameter 'path'"]
    assert check(inside(unknown), "", "", [("save", {"path": "a"})]) == told
    assert check(inside(f"{unknown}\n{known}"), "", "", [("save", {"path": "a", "file": "b"})]) == told
    assert check(PING.replace("ping>\n", f"any>\n{unknown}\n"), "", "", [("any", {"path": "a"})]) == []  # any will do


@pytest.mark.parametrize("slip", ["<parameter=\n", "<parameter=>\n", "<parameter>\n"])
def test_a_parameter_without_a_name_is_told(slip: str) -> None:
    """It stays in the value before it, where it may be quoted, but hardly is."""
    held = f"b.md\n</parameter>\n{slip}echo 1"
    output = inside(f"<parameter=file>\n{held}\n</parameter>")
    told = ["save: the value of 'file' holds a parameter without a name"]
    assert check(output, "", "", [("save", {"file": held})]) == told
    quoted = "a <parameter=> b </parameter> c"
    assert check(inside(f"<parameter=file>\n{quoted}\n</parameter>"), "", "", [("save", {"file": quoted})]) == []


@pytest.mark.parametrize("fence", FENCES)
@pytest.mark.parametrize("call", [PING, save("x"), "<function=ping>\n</function>", "<tool_call>x</tool_call>"])
def test_fenced_calls_are_examples(fence: str, call: str) -> None:
    shown = fence.replace("{}", call)
    for output in (shown, f"So:\n\n{shown}", f"{shown}\n\nThat is all."):
        assert not check(output, output, "", [])
        assert not check(output, output, "", [], tools=[])
    assert not check(f"So:\n\n{shown}\n</think>\n\n{PING}", "", f"So:\n\n{shown}", [("ping", {})], True)
    if fence != "```\n{}":
        check(f"{shown}\n\n{PING}", shown, "", [("ping", {})])


def test_after_what_is_no_fence() -> None:
    for text in ("`` a", "```5``` dollars", "a ~~~ b", "Odd ```\n\nend", "`code`", "```\ncode\n```", "```\ncode\n``` "):
        check(f"{text}\n{PING}", text.rstrip(), "", [("ping", {})])


@pytest.mark.parametrize(
    "output", [PING, f"One.\n\n{save('x')}\n\nTwo.", "</tool_call>", "<function=ping>", "<tool_cal"]
)
def test_no_tools_no_calls(output: str) -> None:
    assert not check(output, output, "", [], tools=[])
    assert not check(f"{output}\n</think>\n\nSo.", "So.", output, [], True, tools=[])


REAL: Calls = [("save", {"file": "real.md", "body": "x"})]
DRAFT = save("x", "draft.md")


@pytest.mark.parametrize(
    "thoughts",
    [
        f"Maybe\n{DRAFT}\nor not.",
        DRAFT,
        f"{DRAFT}\n{DRAFT}\n\nhm",
        f"```\n{DRAFT}\n```",
        f"```\n{DRAFT}",
        f"Begun:\n{DRAFT[:60]}",
        f"Begun:\n{DRAFT[:30]}",
        "Begun: <tool_call>",
        DRAFT.replace("</parameter>\n", ""),
        DRAFT.replace("</function>\n", ""),
        f"{DRAFT.removeprefix('<tool_call>').strip()} hm",
        "Say <tool_call>x</tool_call>, <think> or <function=save>, or </function>.",
        "a\n\n  b",
    ],
)
def test_drafts_in_thoughts_are_thoughts(thoughts: str) -> None:
    real = save("x", "real.md")
    check(f"{thoughts}\n</think>\n\n{real}", "", thoughts, REAL, True)
    check(f"{thoughts}\n</think>\n\n{real}\n{PING}\n", "", thoughts, [*REAL, ("ping", {})], True)
    check(f"<think>\n{thoughts}\n</think>\n\nNo call.", "No call.", thoughts, [])
    check(f"So.\n<think>\n{thoughts}</think>{PING}", "So.", thoughts, [("ping", {})])


def test_calls_that_end_thoughts() -> None:
    """Thoughts that are never closed, or after which nothing comes."""
    real = save("x", "real.md")
    for ending in ("", "\n", "\n</think>", "\n</think>\n\n"):
        check(f"I save.\n{real}{ending}", "", "I save.", REAL, True)
        check(f"I save.\n\n{real}\n{PING}{ending}", "", "I save.", [*REAL, ("ping", {})], True)
    check(f"I save.\n{real}\n\nSaved.", "Saved.", "I save.", REAL, True)
    check(f"I save.\n{real}\n\nSaved.", "", f"I save.\n{real}\n\nSaved.", [], True, cut=True)
    held = save("Close with </think>, then.", "real.md")
    check(
        f"I save.\n{held}", "", "I save.", [("save", {"file": "real.md", "body": "Close with </think>, then."})], True
    )


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (f"One.\n\n{PING}\n\nTwo.", "One.\n\nTwo."),
        (f"One. {PING} Two.", "One. Two."),
        (f"One.\n{PING}\n\n\nTwo.\n", "One.\n\n\nTwo.\n"),
        (f"One.{PING}Two.", "One.\n\nTwo."),
        (f"One.\n{PING}\n{PING}\nTwo.", "One.\nTwo."),
        (f"{PING}\n\nTwo.", "Two."),
        (f"One.\n\n{PING}\n\n", "One."),
        ("One.\n\n<think>\nhm\n</think>\n\nTwo.", "One.\n\nTwo."),
    ],
)
def test_text_around_calls_is_not_glued(output: str, text: str) -> None:
    found = parsed(output)
    assert found["text"] == text
    assert all(parsed(output, size=size) == found for size in (1, 2, 5))


@pytest.mark.parametrize(
    "output",
    [
        'Hm.\n\n<tool_call>\n{"name": "ping"}\n</tool_call>\n\n\nSo.\n',
        "\n<tool_call>\n[]\n</tool_call>  \n",
        " <tool_call><function=save> b.md </function></tool_call>\n\nSo.",
        "<tool_call>\n\n<function=two words>\n</function>\n</tool_call>\n",
        "Use <tool_call> or <function=ping> or </tool_call> \n here.",
        "x\n<function=other>\n</function>\n",
        "<tool_call>\n<tool_call>\n",
    ],
)
def test_what_is_no_call_comes_back_whole(output: str) -> None:
    assert check(output, output, "", [])
