"""The model's output, piece by piece, into text, thinking and tool calls; knows nothing of tokens, models or prompts.

Format: ``<think>...</think>`` around thoughts, and calls as the Qwen3.5 chat template shows them to the model:
``<tool_call>\\n<function=NAME>\\n<parameter=P>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>``.

A value ends at the first ``</parameter>`` that another parameter or the function's end follows, so it may hold tags
itself. A call is done at ``</function>``: a missing ``<tool_call>`` or ``</tool_call>`` does no harm. What breaks this
grammar is no call: it comes back as text, whole and with a warning, which is the one way for a tag to reach text.
How the output is cut into pieces changes only how text and thinking are cut into events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_delta.chat.tools import ToolCall, coerce_arguments, parameter_schemas


@dataclass(frozen=True)
class Event:
    """Exactly one of text, thinking and tool_call is set; warning says what is wrong with it, if anything."""

    text: str | None = None
    thinking: str | None = None
    tool_call: ToolCall | None = None
    warning: str | None = None


@dataclass(frozen=True)
class _Scan:
    """What a buffered call is so far: complete (name is set), malformed (fault is set) or, with neither, unfinished.

    end: where the call stops in the buffer, or where it is known to be malformed. in_value: unfinished inside a value.
    """

    end: int = 0
    name: str = ""
    arguments: Mapping[str, str] | None = None
    fault: str = ""
    in_value: bool = False


_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=")
_TAG = re.compile("|".join(_TAGS))
_OPENING = re.compile(r"(?:<tool_call>\s*)?<function=([^<>\s]+)>\s*")
_OPENING_START = re.compile(r"^(?:<tool_call>\s*)?(?:<function=[^<>\s]*)?")
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>")
_PARAMETER_START = re.compile(r"<parameter=[^<>\n]*")
_VALUE_END = re.compile(r"(</parameter>)\s*(?=<parameter=|</function>)|</function>\s*</tool_call>")
_VALUE_END_MARKS = ("<parameter=", "</function>", "</tool_call>")


class OutputParser:
    """Incremental parser of one answer. Never raises, whatever the model writes.

    tools: the tools offered, in OpenAI's form; their schemas give arguments their types.
    thinking: whether the prompt ended inside an open ``<think>``, so that the answer starts with thoughts.

    Newlines around the tags are dropped: leading ones after ``<think>``, ``</think>`` and a call, and any white space
    before ``</think>`` and a call.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None, *, thinking: bool) -> None:
        self._schemas = parameter_schemas(tools or ())
        self._thinking = thinking
        self._fresh = thinking  # nothing but newlines since the last tag
        self._space = ""  # trailing white space, held back: it is dropped if a tag follows
        self._buffer = ""
        self._calling = False  # the buffer starts with a call, as yet unfinished
        self._fault: _Scan | None = None  # what is wrong with that call, while its end is looked for
        self._in_value = False

    @property
    def thinking(self) -> bool:
        """Whether the output is inside thoughts now."""
        return self._thinking

    @property
    def calling(self) -> bool:
        """Whether the output is inside a tool call now, or what may become one."""
        return self._calling

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        self._buffer += text
        if self._in_value and not self._may_end_value(len(text)):
            return []
        events: list[Event] = []
        while self._step(events, final=False):
            pass
        return events

    def finish(self) -> list[Event]:
        """The events of what is held back, at the end of the output: an unfinished call comes back as text."""
        events: list[Event] = []
        while self._step(events, final=True):
            pass
        if self._space and not self._fresh:
            events.append(self._plain(self._space))
        self._space = ""
        return events

    def _may_end_value(self, new: int) -> bool:
        """Spares a long value from being scanned again for each piece: does a mark end in what is new?"""
        tail = self._buffer[-(new + max(map(len, _VALUE_END_MARKS))) :]
        return any(mark in tail for mark in _VALUE_END_MARKS)

    def _step(self, events: list[Event], final: bool) -> bool:
        """Move past one tag or one call at the head of the buffer; False when more output is needed."""
        if self._calling:
            return self._step_call(events, final)
        tag = _TAG.search(self._buffer)
        if tag is None:
            held = _partial_tag(self._buffer)
            self._emit(events, self._buffer[: len(self._buffer) - held])
            self._buffer = self._buffer[len(self._buffer) - held :]
            if final and held:
                # "<" and "</" may well be the text's own; more of a tag than that is a tag cut off
                warning = f"the output ends inside a tag: {self._buffer!r}" if held > 2 else None
                self._emit(events, self._buffer, warning)
                self._buffer = ""
            return False
        if tag[0] == "<function=" and self._thinking:
            self._emit(events, self._buffer[: tag.end()])  # thoughts may mention it; only <tool_call> ends them
            self._buffer = self._buffer[tag.end() :]
            return True
        self._emit(events, self._buffer[: tag.start()])
        if tag[0] in ("<tool_call>", "<function="):
            self._calling = True
            self._buffer = self._buffer[tag.start() :]
            return True
        if tag[0] in ("<think>", "</think>"):
            self._switch(thinking=tag[0] == "<think>")
        elif not self._fresh:  # a call's own closing tag comes right after it
            events.append(self._plain("", "a closing tag without a call: '</tool_call>'"))
        self._buffer = self._buffer[tag.end() :]
        return True

    def _step_call(self, events: list[Event], final: bool) -> bool:
        if self._fault is not None:
            return self._step_malformed(events, self._fault, final)
        scan = _scan_call(self._buffer)
        self._in_value = scan.in_value and not final
        if scan.name:
            self._switch(thinking=False)
            events.append(self._call(scan))
            self._buffer = self._buffer[scan.end :]
            self._calling = False
        elif scan.fault and self._thinking and not _OPENING.match(self._buffer):
            # thoughts may mention the tag: only a call ends them
            self._emit(events, "<tool_call>", "a tag among thoughts, not a call: '<tool_call>'")
            self._buffer = self._buffer.removeprefix("<tool_call>")
            self._calling = False
        elif scan.fault:
            self._fault = scan
        elif final:
            self._give_up(events, len(self._buffer), "expected '</function>', found the end of the output")
        else:
            return False
        return True

    def _step_malformed(self, events: list[Event], scan: _Scan, final: bool) -> bool:
        """Look for the end of a malformed call: after its closing tag, or before the next call, or at the very end."""
        closing = self._buffer.find("</tool_call>", scan.end)
        opening = self._buffer.find("<tool_call>", max(scan.end, 1))
        ends = [closing + len("</tool_call>")] * (closing >= 0) + [opening] * (opening >= 0)
        if not ends and not final:
            return False
        self._give_up(events, min(ends, default=len(self._buffer)), scan.fault)
        return True

    def _give_up(self, events: list[Event], end: int, fault: str) -> None:
        """The call at the head of the buffer, up to ``end``, is text."""
        self._switch(thinking=False)
        events.append(Event(text=self._buffer[:end], warning=f"malformed tool call: {fault}"))
        self._buffer = self._buffer[end:]
        self._calling = False
        self._fault = None

    def _call(self, scan: _Scan) -> Event:
        schema = self._schemas.get(scan.name)
        arguments = coerce_arguments(scan.arguments or {}, schema or {})
        warning = f"unknown tool: {scan.name!r}" if schema is None else None
        return Event(tool_call=ToolCall(scan.name, arguments), warning=warning)

    def _switch(self, thinking: bool) -> None:
        self._thinking = thinking
        self._fresh = True
        self._space = ""

    def _emit(self, events: list[Event], text: str, warning: str | None = None) -> None:
        """Append text or thinking, less what white space may yet have to be dropped."""
        text = self._space + text
        if self._fresh:
            text = text.lstrip("\n")
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._fresh = False
            events.append(self._plain(body, warning))

    def _plain(self, text: str, warning: str | None = None) -> Event:
        return Event(thinking=text, warning=warning) if self._thinking else Event(text=text, warning=warning)


def _partial_tag(text: str) -> int:
    """Length of the longest end of ``text`` that a tag starts with."""
    start = text.rfind("<")
    tail = text[start:] if start >= 0 else ""
    return len(tail) if any(tag.startswith(tail) for tag in _TAGS) else 0


def _scan_call(buffer: str) -> _Scan:
    """Read the call at the head of the buffer as far as it goes."""
    opening = _OPENING.match(buffer)
    if opening is None:
        rest = _OPENING_START.sub("", buffer, count=1)
        return _Scan() if "<function=".startswith(rest) else _Scan(fault="expected '<function=NAME>'")
    arguments: dict[str, str] = {}
    position = opening.end()
    while not buffer.startswith("</function>", position):
        parameter = _PARAMETER.match(buffer, position)
        if parameter is None:
            rest = buffer[position:]
            if _PARAMETER_START.fullmatch(rest) or any(tag.startswith(rest) for tag in ("<parameter=", "</function>")):
                return _Scan()
            return _Scan(position, fault="expected '<parameter=NAME>' or '</function>'")
        end = _VALUE_END.search(buffer, parameter.end())
        if end is None:
            return _Scan(in_value=True)
        value = buffer[parameter.end() : end.start()]
        if end[1] is None or "\n<parameter=" in value:  # its </parameter> is missing: where it ends is a guess
            return _Scan(end.start(), fault=f"expected '</parameter>' after the value of {parameter[1]!r}")
        arguments[parameter[1]] = value.removeprefix("\n").removesuffix("\n")
        position = end.end()
    return _Scan(position + len("</function>"), opening[1], arguments)
