"""One tool call, tag by tag: where it ends, and what its arguments are, though tags be missing, doubled or misspelt.

The template: ``<tool_call>\\n<function=NAME>\\n<parameter=P>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>``.
Values are not escaped, so a value may quote any tag; what is a quotation is decided by these rules, in this order:

1. Tags pair up. ``<parameter..>``, ``<function..>`` and ``<tool_call>`` inside a value open a quotation that their own
   closing tag ends; a quoted call is never made.
2. A value ends at a ``</parameter>`` that closes no quotation, where the call goes on behind it: with a parameter that
   the tool has and that was not given yet, or with the end of the call. Otherwise it is the value's own.
3. Tags after the end of a call that close a value once more (``</parameter></function>``, perhaps behind text) say that
   the end before was quoted: the value goes on to there. So a call is known to be complete only where the next one
   begins, or at the end of the output.
4. Where the value would never end: a ``</function>`` or ``</tool_call>`` that closes nothing ends it, on a line of its
   own where the value has lines of its own; parameters of the tool within it are parameters then, each without
   ``</parameter>`` or with it. This is a guess, and warned of.
5. A value that can be no text (a number, one of an enumeration) quotes nothing: any tag ends it.

Doubled tags, and stray closing ones beside a call, are dropped. Closing tags that are merely alike count where no exact
one does the same. Each tag is looked at once, and the arguments are worked out once: linear in the output.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mlx_delta.chat.call_values import Broken, Close, Ended, Mark, Value, guessed_values
from mlx_delta.chat.tags import Tag
from mlx_delta.chat.tools import Parameters

_STRAY_ENDS = re.compile(r"(?:\s*</[\w:-]{1,40}>){0,4}")  # before the call's own </tool_call>, or where it is missing
_STRAY_THEN_END = re.compile(_STRAY_ENDS.pattern + r"?\s*</(?:func|tool)[^<>\n]{0,64}>")
_NAMELESS = re.compile(r"</parameter>\s*<parameter(?:[ \t]*=)?[ \t]*[>\n]")  # in a value: more likely slips than quoted
_NO_FUNCTION = "expected '<function=NAME>'"


class CallReader:
    """Push the tags, the opening one first. parameters: those of a tool by its name; None where there is no such tool.

    thoughts: whether the call stands among thoughts, which ``</think>`` ends.
    """

    def __init__(self, parameters: Callable[[str], Parameters | None], *, thoughts: bool) -> None:
        self._parameters = parameters
        self._thoughts = thoughts
        self._chunks: list[str] = []
        self._size = 0
        self._name = ""
        self._tool = Parameters()
        self._given: dict[str, tuple[int, int]] = {}  # the spans of values that have ended
        self._last = ""  # the name of the last of them
        self._value: Value | None = None
        self._end: int | None = None  # where the call ends as far as is known
        self._text_after_end = False
        self._again: int | None = None  # a </parameter> after the end
        self._last_tag = ""
        self._gap = False  # more than white space stands between it and here
        self._thoughts_end: int | None = None
        self._doubts: dict[str, None] = {}

    @property
    def raw(self) -> str:
        """All that was taken."""
        return "".join(self._chunks)

    @property
    def complete(self) -> bool:
        """Whether all of a call is there, unless its end turns out to be quoted."""
        return self._end is not None

    @property
    def may_end(self) -> bool:
        """Whether a call is made of it where the output ends here."""
        value = self._value
        return self.complete or (value is not None and (value.guess or value.tail) is not None)

    @property
    def name(self) -> str:
        """The tool's, once it is there."""
        return self._name

    @property
    def between_values(self) -> bool:
        """Whether no value is open: before the first, or behind a closing tag on a line of its own."""
        if self._value is None:
            return bool(self._name) and not self.complete
        return self._value.closed is not None and self._value.closed.own_line and not self._gap

    @property
    def given(self) -> frozenset[str]:
        """The parameters so far."""
        return frozenset(self._given) | ({self._value.name} if self._value is not None else frozenset())

    @property
    def open_value(self) -> tuple[str, str] | None:
        """The parameter whose value is being written, and that value so far."""
        if self._value is None or self._value.closed is not None:
            return None
        return self._value.name, self.raw[self._value.start :] if not self._value.textual else ""

    def push(self, tag: Tag) -> Ended | Broken | None:
        """None: the tag was taken. Else it was not, and belongs to what follows."""
        verdict = self._read(tag)
        if verdict is None:
            self._chunks.append(tag.raw)
            self._size += len(tag.raw)
            self._last_tag, self._gap = tag.kind, False
            if tag.name and tag.kind == "function":
                self._last_tag = "function="
        return verdict

    def text(self, raw: str) -> Broken | None:
        """The same for text between tags."""
        if not self._gap:
            value = self._value
            if not raw.isspace():
                if value is None and self._end is None:
                    return Broken("expected '<parameter=NAME>' or '</function>'" if self._name else _NO_FUNCTION)
                self._gap = True
                self._read_text(value)
            if value is not None and self._size == value.start:
                value.block = raw.startswith("\n")
        self._chunks.append(raw)
        self._size += len(raw)
        return None

    def _read_text(self, value: Value | None) -> None:
        """The first since a tag that is more than white space."""
        if self._end is not None:
            self._text_after_end, self._again = True, None
        elif value is not None:
            value.empty = False
            self._keep_guess(value)
            if self._last_tag in ("tool_call", "function=") and value.quotes:
                value.pop(self._last_tag.rstrip("="))  # no call begins so
            if value.textual:
                value.closed = None
            elif value.closed is not None:
                self._doubt(f"text behind the value of {value.name!r}")

    def _own_line(self) -> bool:
        """Whether nothing but blanks stands on this line so far; a tag or a newline is not far."""
        for chunk in reversed(self._chunks):
            line = chunk[chunk.rfind("\n") + 1 :]
            if line.strip(" \t"):
                return False
            if len(line) < len(chunk):
                return True
        return True

    def finish(self, *, cut: bool) -> Ended | Broken:
        """The output ends here; cut: not by the model's own choice, so that a guess is no good."""
        value = self._value
        if self._end is not None:
            return self._ended(self._end)
        if value is not None and not cut:
            if value.closed is not None and self._tool.required <= {*self._given, value.name}:
                self._commit(value.closed.start)
                return self._ended(self._size)
            guess = value.guess or value.tail
            if guess is not None:
                return self._guessed(value, guess)
        if self._thoughts_end is not None:
            return Broken("", self._thoughts_end)
        return Broken("expected '</function>', found the end of the output")

    def _read(self, tag: Tag) -> Ended | Broken | None:
        if self._end is not None:
            return self._read_after_end(tag, self._end)
        if self._value is not None:
            value = self._value
            if value.closed is not None:
                return self._read_closed(tag, value, value.closed)
            return self._read_value(tag, value)
        if self._name:
            return self._read_body(tag)
        return self._read_head(tag)

    def _read_head(self, tag: Tag) -> Broken | None:
        if tag.kind == "function" and tag.name and not any(char.isspace() for char in tag.name):
            self._name = tag.name
            self._tool = self._parameters(tag.name) or Parameters()
        elif tag.kind != "tool_call":  # that may be doubled
            return Broken(_NO_FUNCTION)
        return None

    def _read_body(self, tag: Tag) -> Broken | None:
        """Before the first parameter."""
        if tag.kind == "parameter" and tag.name:
            self._begin_value(tag)
        elif tag.kind in ("/function", "/tool_call"):
            self._end = self._size + len(tag.raw)
        elif tag.kind != "/parameter" and (tag.kind, tag.name) != ("function", self._name):
            return Broken("expected '<parameter=NAME>' or '</function>'")
        return None

    def _begin_value(self, tag: Tag) -> None:
        if not self._tool.has(tag.name):
            self._doubt(f"the tool has no parameter {tag.name!r}")
        self._value = Value(tag.name, self._size + len(tag.raw), self._tool.holds_text(tag.name))

    def _commit(self, end: int) -> None:
        """The value ends there."""
        value = self._value
        assert value is not None
        if value.foreign:
            self._doubt(f"the value of {value.name!r} holds a parameter {value.foreign!r}")
        self._given[value.name] = (value.start, end)
        self._last = value.name
        self._value = None
        self._thoughts_end = None

    def _is_next(self, name: str, value: Value | None) -> bool:
        """Whether a parameter of this name may follow the value."""
        if value is None:
            return name not in self._given and self._tool.has(name)
        if not value.textual:
            return bool(name)
        if name in self._given or name == value.name:
            return False
        return self._tool.has(name) or (bool(name) and not self._tool.has(value.name))

    def _follows(self, kind: str) -> bool:
        return self._last_tag == kind and not self._gap

    def _close(self, tag: Tag) -> Close:
        return Close(self._size, self._size + len(tag.raw), tag.exact, self._own_line())

    def _read_value(self, tag: Tag, value: Value) -> Ended | Broken | None:
        kind = tag.kind
        if kind in ("/function", "/tool_call"):
            self._read_end_in_value(tag, value)
            return None
        guess = value.guess or value.tail
        if kind == "function" and (self._follows("tool_call") or self._parameters(tag.name)):  # a call, unless quoted
            if guess is not None:
                return self._guessed(value, guess)
            if self._thoughts_end is not None:
                return Broken("", self._thoughts_end)
        if kind == "tool_call":
            value.push(kind)
            return None
        if kind == "/think" and self._thoughts and not value.thoughts and guess is not None:
            return self._guessed(value, guess)
        if kind == "parameter" and tag.name:
            if tag.name == value.name and value.empty and not value.marks:
                value.start, value.block = self._size + len(tag.raw), False  # doubled
                return None
            if self._is_next(tag.name, value) and (value.tail is not None or not value.textual):
                self._doubt(f"expected '</parameter>' after the value of {value.name!r}")
                self._commit(value.tail.start if value.tail is not None else self._size)
                self._begin_value(tag)
                return None
        self._keep_guess(value)
        value.empty = False
        if kind == "/parameter":
            self._mark(tag, value, opens=False)
            if value.quotes and value.quotes[-1] == "parameter":
                value.pop("parameter")
            else:
                value.closed = self._close(tag)
        elif kind == "parameter":
            self._mark(tag, value, opens=True)
            if tag.raw.endswith(">"):
                value.push(kind)
        elif kind == "function":
            value.push(kind)
        elif kind == "think":
            value.thoughts += 1
        elif kind == "/think":
            if value.thoughts:
                value.thoughts -= 1
            elif self._thoughts and self._thoughts_end is None:
                self._thoughts_end = self._size
        return None

    def _keep_guess(self, value: Value) -> None:
        if value.tail is not None:
            if value.guess is None and value.counts_as_end(value.tail):
                value.guess = value.tail
            value.tail = None

    def _mark(self, tag: Tag, value: Value, *, opens: bool) -> None:
        if not value.counts["function"] and not value.counts["tool_call"]:
            end = self._size + len(tag.raw)
            after_close = self._follows("/parameter")
            value.marks.append(Mark(opens, tag.name, self._size, end, self._own_line(), after_close))

    def _read_end_in_value(self, tag: Tag, value: Value) -> None:
        if not value.textual:
            self._doubt(f"expected '</parameter>' after the value of {value.name!r}")
            self._commit(self._size)
            self._end = self._size + len(tag.raw)
        elif tag.exact and value.pop(tag.kind[1:]):
            pass
        elif value.tail is not None:
            value.tail.end = self._size + len(tag.raw)
        else:
            value.tail = self._close(tag)

    def _read_closed(self, tag: Tag, value: Value, closed: Close) -> Ended | Broken | None:
        """After a </parameter> that closes no quotation."""
        kind = tag.kind
        if kind == "/parameter":
            if tag.exact and not (closed.exact and value.counts_as_end(closed)):
                if closed.exact:
                    self._doubt(f"the value of {value.name!r} ends in '</parameter>'")
                value.closed = self._close(tag)
                self._mark(tag, value, opens=False)
            return None  # or doubled
        if kind in ("/function", "/tool_call"):
            self._commit(closed.start)
            self._end = self._size + len(tag.raw)
            return None
        if kind == "parameter" and tag.name == value.name:
            self._doubt(f"the parameter {value.name!r} is given twice")
            self._commit(closed.start)
            self._begin_value(tag)
            return None
        if kind == "parameter" and self._is_next(tag.name, value):
            self._commit(closed.start)
            self._begin_value(tag)
            return None
        if kind == "tool_call" or (kind == "function" and self._parameters(tag.name)):
            self._commit(closed.start)
            return self._ended(self._size)
        if not value.textual:
            return None  # whatever it is, the value is over
        value.closed = None
        if kind == "parameter":
            value.foreign = value.foreign or tag.name
            return None
        return self._read_value(tag, value)

    def _read_after_end(self, tag: Tag, end: int) -> Ended | None:
        kind = tag.kind
        if kind in ("tool_call", "think", "/think") or (kind == "function" and self._parameters(tag.name)):
            return self._ended(end)
        after = self._size + len(tag.raw)
        if kind == "/parameter":
            self._again = self._size
        elif kind in ("/function", "/tool_call") and (self._goes_on_to_again(kind) or not self._text_after_end):
            self._end = after
        elif kind == "parameter" and self._is_next(tag.name, None):
            if not self._goes_on_to_again(kind) and self._text_after_end:
                return None
            self._end = None  # the end was stray, or quoted
            self._text_after_end = False
            self._again = None
            self._begin_value(tag)
        else:
            self._text_after_end = self._text_after_end or kind not in ("/function", "/tool_call")
            self._again = None
            return None
        if kind == "/parameter" and not self._text_after_end:
            self._end = after
        return None

    def _goes_on_to_again(self, kind: str) -> bool:
        """Rule 3: whether the last value goes on to the </parameter> just before."""
        if self._again is None or not self._last or (kind == "/tool_call" and not self._text_after_end):
            return False
        self._doubt(f"the value of {self._last!r} holds the end of a call")
        self._given[self._last] = (self._given[self._last][0], self._again)
        self._again = None
        self._text_after_end = False
        return True

    def _guessed(self, value: Value, guess: Close) -> Ended:
        """Rule 4: the call ends at ``guess``, and so do the value and the parameters within it."""
        given = guessed_values(self.raw, value, guess.start, self._tool, self._given, self._doubt)
        self._given.update(given)
        self._value = None
        return self._ended(guess.end)

    def _doubt(self, what: str) -> None:
        self._doubts[what] = None

    def _ended(self, end: int) -> Ended:
        raw = self.raw
        stray = _STRAY_THEN_END.match(raw, end)
        if stray is None and not raw.startswith(("</tool", "</ tool"), raw.rfind("<", 0, end)):
            stray = _STRAY_ENDS.match(raw, end)
        end = end if stray is None else stray.end()
        arguments = {
            name: raw[start:stop].removeprefix("\n").removesuffix("\n") for name, (start, stop) in self._given.items()
        }
        for name, value in arguments.items():
            if _NAMELESS.search(value):
                self._doubt(f"the value of {name!r} holds a parameter without a name")
        return Ended(self._name, arguments, tuple(self._doubts), raw[end:])
