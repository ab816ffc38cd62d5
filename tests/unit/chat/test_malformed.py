"""Outputs from a grammar of what models really write: calls with tags missing, doubled, misspelt and astray.

What is right is known twice: by the generator, which knows what it meant, and by a reader of whole outputs that is
written with regular expressions and shares nothing with the parser.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass, field

import pytest

from mlx_delta.chat.parse import OutputParser
from mlx_delta.chat.tools import create_tool_definition

PARAMETERS = {"write": ("path", "content", "mode"), "search": ("query", "limit"), "now": ()}
TOOLS = [create_tool_definition(n, "", {p: {"type": "string"} for p in names}) for n, names in PARAMETERS.items()]
OUTPUTS = int(os.environ.get("MLX_DELTA_SOAK", "1")) * 10_000
Call = tuple[str, dict[str, str]]

VALUES = [
    "a.txt",
    "two words",
    "one\n\n  two\n",
    "x < y and <b>bold</b>",
    "é 🦙 </",
    "",
    "<tool",
    "{'k': [1]}",
    "a\tb ",
    "`",
]
TEXTS = ["Let me look.", "One.\n\nTwo.", "Is 1 < 2?", "* a `b` c", "> quoted", "<p>Hi</p>", "Zürich 🦙"]
MISSPELT = {
    "</parameter>": ["</parameter1>", "</parameter", "</parameters>", "</param>", "</parameter >", "</parameter=path>"],
    "</function>": ["</function", "</functions>", "</function_call>", "</func>"],
    "</tool_call>": ["</tool_call", "</tool_calls>", "</tool-call>"],
    "<tool_call>": ["<tool_calls>"],
}
STRAY = ["</function_invocation>", "</invoke>", "</tool_call>", "</function>"]


@dataclass
class Output:
    """text: words alone, for white space around calls is a matter of its own."""

    raw: str = ""
    words: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


def spoil(rng: random.Random, tags: list[tuple[str, str]]) -> list[str]:
    """Pieces of a call, (kind, text), with faults from which the call can still be read."""
    kept = rng.choice([len(tags) - 2, len(tags) - 1])  # of the last tags one is left, to tell the end by
    pieces = []
    missing = False  # of a value's end: beside a doubled one that would read as a quoted parameter
    fault = rng.choice(["none", "missing", "doubled", "misspelt", "stray", "all"])
    for i, (kind, text) in enumerate(tags):
        may = rng.random() < 0.4 and fault != "none"
        chosen = rng.choice(["missing", "doubled", "misspelt", "stray"]) if fault == "all" else fault
        if not may or kind == "value":
            pieces.append(text)
        elif chosen == "missing" and kind.startswith("</") and i != kept:
            missing = missing or kind == "</parameter>"
            pieces.append("")
        elif chosen == "missing" and kind == "<tool_call>":
            pieces.append("")
        elif chosen == "doubled" and not (missing and kind == "</parameter>"):
            pieces.append(text + rng.choice(["", "\n"]) + text)
        elif chosen == "misspelt" and kind in MISSPELT:
            pieces.append(text.replace(kind, rng.choice(MISSPELT[kind])))
        elif chosen == "stray" and kind == "</function>":
            pieces.append(text + "\n" + rng.choice(STRAY))
        elif chosen == "stray" and kind == "<function>":
            pieces.append(text + "\n</parameter>")
        else:
            pieces.append(text)
    return pieces


def call(rng: random.Random, *, faulty: bool = True) -> tuple[str, Call]:
    name = rng.choice(list(PARAMETERS))
    names = rng.sample(PARAMETERS[name], rng.randrange(len(PARAMETERS[name]) + 1))
    line = rng.choice(["\n", "\n", "\n", ""])
    values = VALUES if line else [value.strip("\n") for value in VALUES]  # one newline on each side is the format's
    arguments = {p: rng.choice(values) for p in names}
    tags = [("<tool_call>", "<tool_call>"), ("<function>", f"<function={name}>")]
    for p, value in arguments.items():
        tags += [
            ("<parameter>", f"<parameter={p}>"),
            ("value", f"{line}{value}{line}"),
            ("</parameter>", "</parameter>"),
        ]
    tags += [("</function>", "</function>"), ("</tool_call>", "</tool_call>")]
    pieces = spoil(rng, tags) if faulty else [text for _, text in tags]
    raw = ""
    for (kind, _), piece in zip(tags, pieces, strict=True):
        raw += piece + (line if kind not in ("value", "<parameter>") and piece else "")
    return raw.removesuffix("\n"), (name, arguments)


def output(rng: random.Random, thinking: bool) -> Output:
    out = Output()
    if thinking:
        for _ in range(rng.randrange(3)):
            draft, _ = call(rng, faulty=rng.random() < 0.3)
            thought = rng.choice(
                [*TEXTS, f"Maybe\n{draft}\nor not.", f"So:\n```\n{draft}\n```", "Say <tool_call>x</tool_call>."]
            )
            out.thoughts.append(thought)
        out.raw = "\n".join(out.thoughts) + "\n</think>\n\n"
    for _ in range(rng.randrange(1, 5)):
        kind = rng.choice(["text", "call", "call", "fence"])
        if kind == "text":
            piece = rng.choice(TEXTS)
            out.words += piece.split()
        elif kind == "fence":
            mark = rng.choice(["```", "~~~", "````"])
            piece = f"{mark}{rng.choice(['', 'xml'])}\n{call(rng)[0]}\n{mark}"
            out.words += piece.split()
        else:
            piece, meant = call(rng)
            out.calls.append(meant)
        out.raw += piece + rng.choice(["\n", "\n\n"])
    return out


_FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"(?:<tool_calls?>\s*)*(?:<function=(?P<name>\w+)>\s*)+")
_ENDS = r"</(?:param|func|tool_call|tool-call)[^<>\n]*>?"


def whole_reader(raw: str, thinking: bool) -> list[Call]:
    """The calls in an output whose values quote no tags."""
    text = _FENCE.sub("", raw.split("</think>", 1)[1] if thinking else raw)
    heads = list(_HEAD.finditer(text))
    found = []
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)], strict=False):
        body = text[head.end() : end]
        arguments = {}
        names = "|".join(PARAMETERS[head["name"]]) or "-"
        openings = list(re.finditer(rf"<parameter=(?P<name>{names})>(?:\s*<parameter=(?P=name)>)*", body))
        for opening, stop in zip(openings, [*(o.start() for o in openings[1:]), len(body)], strict=False):
            value = re.split(_ENDS, body[opening.end() : stop], maxsplit=1)[0]
            arguments[opening["name"]] = value.removeprefix("\n").removesuffix("\n")
        found.append((head["name"], arguments))
    return found


def cut(rng: random.Random, raw: str) -> list[str]:
    """Into tokens at random; now and then into characters."""
    longest = rng.choice([1, 4, 12, 60])
    pieces = []
    while raw:
        size = rng.randrange(1, longest + 1)
        pieces.append(raw[:size])
        raw = raw[size:]
    return pieces


@pytest.mark.parametrize("seed", range(4))
def test_generated_outputs(seed: int) -> None:
    rng = random.Random(seed)
    called = 0
    for _ in range(OUTPUTS // 4):
        thinking = rng.random() < 0.3
        made = output(rng, thinking)
        assert whole_reader(made.raw, thinking) == made.calls, made.raw
        parser = OutputParser(TOOLS, thinking=thinking)
        events = [event for piece in cut(rng, made.raw) for event in parser.push(piece)] + parser.finish()
        calls = [(e.tool_call.name, e.tool_call.arguments) for e in events if e.tool_call]
        assert calls == made.calls, made.raw
        assert "".join(e.text or "" for e in events).split() == made.words, made.raw
        assert "".join(e.thinking or "" for e in events) == "\n".join(made.thoughts).strip("\n"), made.raw
        called += len(calls)
    assert called > OUTPUTS // 4
