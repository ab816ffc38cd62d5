"""Output text to tags and the text between them, piece by piece; and where Markdown's code fences lie.

Tags are those of the Qwen3.5 chat template, and what models write in their place: ``</parameter1>``, ``</parameter``
at the end of a line, ``<parameter name="p">``. What a tag means depends on where it stands: see calls and parse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_NAME = 128  # characters of a name: a longer one is no tag, so that little is ever held back


class Tag(NamedTuple):
    """kind: the tag's word, with "/" before it where it closes. raw: as written. name: of a function or a
    parameter. exact: written as the template has it, not merely alike."""

    kind: str
    raw: str
    name: str = ""
    exact: bool = True


_IS = r"(?:[ \t]{0,4}[=:][ \t]{0,4}|[ \t]{1,4}(?:name[ \t]{0,4}=[ \t]{0,4})?)"
_OPEN = rf"<(?:function|param(?:eter)?){_IS}(?P<name>[^<>\n]{{1,{_NAME}}})(?:>|(?=\n))"
_CLOSE = r"</ ?(?P<end>tool[_-]?call|func(?:tion)?|param(?:eter)?)(?:[^<>\n]{0,64}>|\w{0,16}(?=[<\n]))"
_CLOSE_AT_END = _CLOSE.replace(r"(?=[<\n])", r"(?=[<\n]|\Z)")
_REST = r"<tool_calls?>|<(?:function|parameter)>"
_THOUGHTS = r"</?think>"
_TAGS = re.compile(f"{_OPEN}|{_CLOSE}|{_REST}|{_THOUGHTS}")
_TAGS_AT_END = re.compile(f"{_OPEN}|{_CLOSE_AT_END}|{_REST}|{_THOUGHTS}")
_ONLY_THOUGHTS = re.compile(_THOUGHTS)

_WORDS = ("think", "tool_calls", "tool-call", "toolcall", "function", "parameter")


def _beginnings(*words: str) -> frozenset[str]:
    return frozenset(f"{start}{w[:n]}" for start in ("<", "</", "</ ") for w in words for n in range(len(w) + 1))


_BEGINNINGS = {True: _beginnings(*_WORDS), False: _beginnings("think")}
_LONG = re.compile(
    rf"<(?:(?:function|param)[^<>\n]{{0,{_NAME + 32}}}|/ ?(?:tool[_-]?call|func|param)[^<>\n]{{0,80}})\Z"
)
_SHORTEST = len("</func")
_ENDS = {"tool": "/tool_call", "func": "/function", "para": "/parameter"}
_COMMON = {f"<{kind}>": Tag(kind, f"<{kind}>") for kind in ("think", "/think", "tool_call", *_ENDS.values())}


class Lexer:
    """Text in pieces to tags and text in between. calls: whether calls are looked for, or thoughts alone."""

    def __init__(self, *, calls: bool) -> None:
        self._calls = calls
        self.beginnings = _BEGINNINGS[calls]  # of tags; ``push`` need not be asked about these
        self._pattern = _TAGS if calls else _ONLY_THOUGHTS
        self._at_end = _TAGS_AT_END if calls else _ONLY_THOUGHTS
        self.held = ""  # the beginning of what may become a tag

    def push(self, text: str) -> Sequence[str | Tag]:
        """What the next piece completes. text: what was held, and the piece."""
        last = text.rfind("<")
        if last < 0:
            return (text,) if text else ()
        held = text[last:]
        if held in self.beginnings or (self._calls and _LONG.match(held)):
            self.held = held
            if last < _SHORTEST:
                return (text[:last],) if last else ()
        else:
            self.held, last = "", len(text)
        return _split(text, last, self._pattern)

    def finish(self) -> Sequence[str | Tag]:
        """What is held back, now that the output ends: a tag without its ``>``, or text."""
        held, self.held = self.held, ""
        return self.split(held)

    def split(self, text: str) -> Sequence[str | Tag]:
        """A whole stretch that ends where a tag ends or begins."""
        return _split(text, len(text), self._at_end)


def _split(text: str, end: int, pattern: re.Pattern[str]) -> list[str | Tag]:
    tags: list[str | Tag] = []
    position = 0
    for match in pattern.finditer(text):
        start = match.start()
        if start >= end:
            break
        if start > position:
            tags.append(text[position:start])
        tags.append(_COMMON.get(match[0]) or _tag(match))
        position = match.end()
    if position < end:
        tags.append(text[position:end])
    return tags


def _tag(match: re.Match[str]) -> str | Tag:
    raw, name, end = match[0], match["name"], match["end"]
    if end:
        return Tag(_ENDS[end[:4]], raw, exact=False)
    if name is None:
        return Tag("tool_call" if raw.startswith("<tool") else raw[1:-1], raw, exact=False)
    kind = "function" if raw.startswith("<f") else "parameter"
    if raw.endswith("/>"):
        return raw
    return Tag(kind, raw, name.strip().strip("\"'").strip(), exact=raw == f"<{kind}={name}>")


_BLANK = " \t>"
_FENCE_PARTS = re.compile(r"\n|`+|~+|[^\n`~]+")


class Fences:
    """Whether text stands in a code fence, ``` or ~~~, or in a span of three backticks or more within a paragraph.

    As CommonMark has it, but at any indentation and behind ``>``. A tag ends the line that closes a fence.
    """

    def __init__(self) -> None:
        self.idle = False  # more text on this line, without backticks and tildes, would change nothing
        self._fence: tuple[str, int, bool] | None = None  # character, length, whether it is a block
        self._blank = True  # nothing but blanks on this line so far
        self._leading = True  # so it was before the run
        self._run = ""  # its character
        self._length = 0
        self._opener_line = False
        self._closing = False

    def push(self, text: str) -> None:
        """Go on with text between tags."""
        if text == self._run and text:
            self._length += 1
            return
        if not self._run and self._fence is None and "`" not in text and "~" not in text:
            line = text[text.rfind("\n") + 1 :]
            self._blank = (self._blank or "\n" in text) and not line.strip(_BLANK)
            self.idle = not self._blank
            return
        self.idle = False
        for part in _FENCE_PARTS.findall(text) if len(text) > 1 else text:
            if part[0] == self._run:
                self._length += len(part)
                continue
            self._end_run()
            if part == "\n":
                self._end_line()
            elif part[0] in "`~":
                self._run, self._length, self._leading = part[0], len(part), self._blank
                self._blank = False
                self._closing = False
            elif part.strip(_BLANK):
                self._blank = False
                self._closing = False

    def open(self) -> bool:
        """Whether a tag that stands here is in a fence."""
        self._end_run()
        if self._closing:
            self._fence, self._closing = None, False
        return self._fence is not None

    @property
    def line_start(self) -> bool:
        """Whether nothing but blanks stands on this line so far."""
        return self._blank

    def _end_run(self) -> None:
        char, length, self._run = self._run, self._length, ""
        if not char or length < 3:
            return
        if self._fence is None:
            if self._leading or char == "`":
                self._fence, self._opener_line = (char, length, self._leading), True
            return
        fence, least, block = self._fence
        if char != fence or length < least:
            return
        if not block or (self._opener_line and char == "`"):
            self._fence = None
        elif self._leading:
            self._closing = True

    def _end_line(self) -> None:
        if self._closing or (self._blank and self._fence is not None and not self._fence[2]):
            self._fence = None
        self._closing = self._opener_line = False
        self._blank = True
