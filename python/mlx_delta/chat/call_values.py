"""What calls are read into; and where a value of one ends when no tag says so (see ``calls``, rule 4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlx_delta.chat.tools import Parameters

_MISSPELT_END = re.compile(r"\s*</?param[^<>\n]{0,64}>?\s*\Z")
_NEAR = 8  # characters: a tag is doubled where no more than white space of that length stands between


@dataclass(frozen=True)
class Ended:
    """A call. arguments: as written. doubts: where they are a guess. rest: what was read beyond its end."""

    name: str
    arguments: dict[str, str]
    doubts: tuple[str, ...]
    rest: str


@dataclass(frozen=True)
class Broken:
    """No call: all of it is text. thoughts_end: what was read is thoughts up to a ``</think>`` there."""

    fault: str
    thoughts_end: int | None = None


@dataclass
class Mark:
    """A tag of a parameter inside a value."""

    opens: bool
    name: str
    start: int
    end: int
    own_line: bool
    after_close: bool  # nothing but white space between the closing tag before and this one


@dataclass
class Close:
    """A tag that may end a value or a call."""

    start: int
    end: int
    exact: bool
    own_line: bool


@dataclass
class Value:
    name: str
    start: int
    textual: bool
    empty: bool = True  # nothing but white space so far
    block: bool = False  # it begins on a line of its own
    quotes: list[str] = field(default_factory=list)  # kinds of the tags that are open
    counts: dict[str, int] = field(default_factory=lambda: {"parameter": 0, "function": 0, "tool_call": 0})
    marks: list[Mark] = field(default_factory=list)
    closed: Close | None = None  # the </parameter> that may end it
    guess: Close | None = None  # rule 4
    tail: Close | None = None  # the same, as long as nothing but white space and closing tags follows
    foreign: str = ""  # a quoted parameter that stands where one of the tool's own might
    thoughts: int = 0

    def push(self, kind: str) -> None:
        self.quotes.append(kind)
        self.counts[kind] += 1

    def pop(self, kind: str) -> bool:
        """Close the last quoted tag of this kind, and all within it; False where there is none."""
        if not self.counts[kind]:
            return False
        while True:
            last = self.quotes.pop()
            self.counts[last] -= 1
            if last == kind:
                return True

    def counts_as_end(self, close: Close) -> bool:
        return close.own_line or not self.block


def guessed_values(
    raw: str, value: Value, stop: int, tool: Parameters, given: Mapping[str, object], doubt: Callable[[str], None]
) -> dict[str, tuple[int, int]]:
    """The spans of the value, and of the tool's parameters within it, where all that ends them is a tag at ``stop``.

    given: the parameters before. doubt: is told what is a guess.
    """
    found: dict[str, tuple[int, int]] = {}
    name, start, quoted = value.name, value.start, 0
    closing: Mark | None = None  # the tag that ends this parameter, as far as is known
    before: Mark | None = None
    for mark in value.marks:
        if mark.start >= stop:
            break
        if not mark.opens:
            quoted, closing = (quoted - 1, closing) if quoted else (0, mark)
        elif mark.name == name and mark.start - start < _NEAR and not raw[start : mark.start].strip():
            start = mark.end  # doubled
        elif mark.name not in (name, *found) and mark.name not in given and tool.has(mark.name):
            end = _guessed_end(raw, name, start, mark.start, before if mark.after_close else closing, doubt)
            found[name] = (start, end)
            name, start, quoted, closing = mark.name, mark.end, 0, None
        else:
            quoted += 1
        before = mark
    if before is not None and not before.opens and not raw[before.end : stop].strip():
        closing = before
    found[name] = (start, _guessed_end(raw, name, start, stop, closing, doubt))
    return found


def _guessed_end(raw: str, name: str, start: int, stop: int, closing: Mark | None, doubt: Callable[[str], None]) -> int:
    """``stop``, or the closing tag before it, unless text of the value follows that."""
    if closing is None:
        doubt(f"expected '</parameter>' after the value of {name!r}")
        misspelt = _MISSPELT_END.search(raw[max(start, stop - 80) : stop])
        return stop - (0 if misspelt is None else len(misspelt[0]))
    behind = raw[closing.end : stop].strip()
    if not behind:
        return closing.start
    if closing.own_line or not raw.startswith("\n", start):
        doubt(f"text behind the value of {name!r}: {behind!r:.80}")
        return closing.start
    return stop
