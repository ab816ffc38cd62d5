"""The model's output, piece by piece, into text, thinking and tool calls; knows nothing of tokens, models or prompts.

Format: ``<think>...</think>`` around thoughts, and calls as the Qwen3.5 chat template shows them to the model
(``calls`` has the rules for one call). The contract, whatever the model writes:

- Nothing raises, and nothing is lost: what is neither a call nor a tag with a meaning is text, or thinking, as it was
  written, white space and all. What breaks the grammar of calls comes back so too, with a warning.
- Calls are looked for where tools are offered, outside of code fences (``tags.Fences``): fenced ones are examples. A
  call begins with ``<tool_call>``, or with ``<function=NAME>`` where NAME is one of the tools.
- ``</think>`` ends thoughts wherever it stands, but for the value of a whole call. A call among thoughts that go on, or
  that something follows, is a draft and part of them; where they are never closed, or nothing comes after them, the
  call ended them and is made.
- Between two stretches of text the white space stays that was around the call or the thoughts in between (the longer of
  both sides; a blank line where there was none). Newlines after ``<think>`` and ``</think>``, and white space before a
  call that ends the text, are dropped.
- How the output is cut into pieces changes only how text and thinking are cut into events.
- Time and memory are linear in the output. Held back are: what may become a tag; a call, until what follows shows that
  it is whole (see ``calls``, rule 3); what follows a call among thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_delta.chat.call_values import Broken, Ended
from mlx_delta.chat.calls import CallReader
from mlx_delta.chat.schema import Schema
from mlx_delta.chat.tags import Fences, Lexer, Tag
from mlx_delta.chat.tools import Parameters, ToolCall, coerce_arguments, misfits, parameter_schemas


class Event(NamedTuple):
    """Exactly one of text, thinking and tool_call is set; warning says what is wrong with it, if anything."""

    text: str | None = None
    thinking: str | None = None
    tool_call: ToolCall | None = None
    warning: str | None = None


@dataclass
class _Draft:
    """What follows since a call among thoughts, both ways: as written, and as events where the call is made.

    streams, called: as they were before it.
    """

    raw: list[str]
    streams: dict[bool, _Stream]
    called: bool
    events: list[Event] = field(default_factory=list)
    quiet: bool = True  # nothing but calls so far
    closed: list[str] | None = None  # white space since the </think> after them


class _Stream:
    """Text, or thinking: stretches of it, with calls and other things between. Holds back white space at the end."""

    def __init__(self, fresh: bool) -> None:
        self._fresh = fresh  # nothing but newlines since the last tag
        self._newlines = 0  # of those
        self._space: list[str] = []  # at the end of what there is
        self.plain = False  # text that does not end in white space is shown as it is: ``push`` need not be asked
        self._spoken = False
        self._before: str | None = None  # the white space at the end of the stretch before; None: there is none to part

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self._fresh and not self._space:
            stripped = text.lstrip("\n")
            self._newlines += len(text) - len(stripped)
            text = stripped
        body = text.rstrip()
        if not body:
            if text:
                self._space.append(text)
                self.plain = False
            return ""
        shown = "".join([*self._space, body]) if self._space else body
        self._space = [text[len(body) :]] if len(body) < len(text) else []
        if self._before is not None:
            around = max(self._before, "\n" * self._newlines, key=len)
            if not shown[0].isspace():
                shown = (around or "\n\n") + shown
            elif "\n" in around:
                shown = around + shown
            self._before = None
        self._fresh, self._spoken, self._newlines = False, True, 0
        self.plain = not self._space
        return shown

    @property
    def begun(self) -> bool:
        """Whether the stretch has more than newlines."""
        return not self._fresh

    @property
    def spoken(self) -> bool:
        """Whether anything was shown."""
        return self._spoken

    def rest(self) -> str:
        """The white space at the end, where nothing follows that it parts from."""
        space, self._space = "".join(self._space), []
        self.plain = not self._fresh and self._before is None
        return "" if self._fresh else space

    def copy(self) -> _Stream:
        stream = _Stream(False)
        stream.__dict__.update(self.__dict__, _space=list(self._space))
        return stream

    def part(self) -> None:
        """A stretch ends: something of another kind follows."""
        if self._spoken and self._before is None:
            self._before = "".join(self._space)
        self.turn()

    def turn(self) -> None:
        """A tag stands here that is not shown."""
        self._space, self._fresh, self._newlines, self.plain = [], True, 0, False


class OutputParser:
    """Incremental parser of one answer.

    tools: the tools offered, in OpenAI's form; their schemas give arguments their types. Without any, all is text.
    thinking: whether the prompt ended inside an open ``<think>``, so that the answer starts with thoughts.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None, *, thinking: bool) -> None:
        self._schemas = {name: Schema(schema) for name, schema in parameter_schemas(tools or ()).items()}
        self._known: dict[str, Parameters] = {}
        self._lexer = Lexer(calls=bool(self._schemas))
        self._fences = Fences()
        self._thinking = thinking
        self._streams = {False: _Stream(False), True: _Stream(thinking)}
        self._reader: CallReader | None = None
        self._draft: _Draft | None = None
        self._broken = False  # inside what began as a call and is none
        self._called = False
        self._events: list[Event] = []
        self._sink = self._events  # where events go: those after a call among thoughts wait

    @property
    def thinking(self) -> bool:
        """Whether the output is inside thoughts now, as far as is known."""
        return self._thinking if self._draft is None else self._draft.closed is None

    @property
    def calling(self) -> bool:
        """Whether the output is inside a tool call now, or what may become one."""
        return self._reader is not None and not self._reader.complete

    @property
    def reader(self) -> CallReader | None:
        """The call under way, if any."""
        return self._reader

    @property
    def drafted(self) -> bool:
        """Whether a call just ended among thoughts: it is made if the output ends here."""
        complete = self._reader is not None and self._reader.complete
        return (complete and self._thinking) or (self._draft is not None and self._draft.quiet)

    @property
    def called(self) -> bool:
        """Whether a call is complete that is no draft, though it may be held back yet."""
        complete = self._reader is not None and self._reader.complete
        return self._draft.called if self._draft is not None else self._called or (complete and not self._thinking)

    def go_on(self, written: str) -> None:
        """Begin behind what is written already, and is not told again: inside its fence, or its call."""
        self.push(written)
        self._lexer.held = ""
        self._streams = {kind: _Stream(kind and not written) for kind in (False, True)}

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        lexer = self._lexer
        if not lexer.held and "<" not in text and self._draft is None:
            if text:
                self._read_text(text)
        else:
            text = lexer.held + text
            if text in lexer.beginnings:  # so most pieces end where they are small
                lexer.held = text
                return []
            for part in lexer.push(text):
                if type(part) is str and self._draft is None:
                    self._read_text(part)
                else:
                    self._push(part)
        return self._flush() if self._events else []

    def finish(self, *, cut: bool = False) -> list[Event]:
        """The events of what is held back, at the end of the output. cut: it was ended from outside (by a limit on its
        length, say), so that a call without its end is none."""
        for part in [self._lexer.held] * bool(self._lexer.held) if cut else self._lexer.finish():
            half = isinstance(part, str) and len(part) > len("</")  # less may well be the text's own
            cut = cut or half
            if half and self._reader is None and self._draft is None:
                self._say(str(part), f"the output ends inside a tag: {part!r}")
            else:
                self._push(part)
        while self._reader is not None:
            reader, self._reader = self._reader, None
            self._resolve(reader.finish(cut=cut), reader, "")
        if self._draft is not None:
            if cut and (not self._draft.quiet or self._draft.closed is not None):
                self._drop(self._draft, "".join(self._draft.raw))
            else:
                self._events += self._draft.events
                self._draft, self._sink = None, self._events
        rest = self._streams[self._thinking].rest()
        if rest:
            self._add(rest)
        return self._flush()

    def _flush(self) -> list[Event]:
        events, self._events = self._events, []
        if self._draft is None:
            self._sink = self._events
        return events

    def _push(self, part: str | Tag) -> None:
        """A tag of the output, or text."""
        draft = self._draft
        if draft is not None:
            raw = part if isinstance(part, str) else part.raw
            if draft.closed is None:
                draft.raw.append(raw)
            elif raw.isspace() or raw == "</think>":
                draft.closed.append(raw)
                return
            else:
                self._drop(draft, "".join(draft.raw[:-1]))
                self._switch(thinking=False)
                self._read_text("".join(draft.closed))
        self._read(part)

    def _read(self, part: str | Tag) -> None:
        """The same, or once more what a call has left over."""
        if isinstance(part, str):
            self._read_text(part)
            return
        while self._reader is not None:
            reader = self._reader
            verdict = reader.push(part)
            if verdict is None:
                return
            self._reader = None
            self._resolve(verdict, reader, part.raw)
        self._read_tag(part)

    def _read_tag(self, tag: Tag) -> None:
        """Outside of calls."""
        if tag.kind in ("think", "/think"):
            self._read_thoughts(tag)
        elif tag.kind == "/tool_call" and not self._thinking and not self._broken and not self._fences.open():
            if self._streams[False].begun:
                self._add("", f"a closing tag without a call: {tag.raw!r}")
        elif self._begins_call(tag):
            self._reader = CallReader(self._parameters, thoughts=self._thinking or self._draft is not None)
            self._reader.push(tag)
        else:
            unknown = tag.kind == "function" and tag.exact and not self._thinking and not self._fences.open()
            self._literal(tag.raw, f"a tag, not a call of a tool: {tag.raw!r}" if unknown else None)
            self._broken = self._broken and tag.kind != "/tool_call"

    def _read_text(self, text: str) -> None:
        reader = self._reader
        if reader is not None:
            verdict = reader.text(text)
            if verdict is None:
                return
            self._reader = None
            self._resolve(verdict, reader, text)
        fences = self._fences
        if not fences.idle or "\n" in text or "`" in text or "~" in text:
            fences.push(text)
        stream = self._streams[self._thinking]
        shown = text if stream.plain and not text[-1:].isspace() else stream.push(text)
        if shown:
            self._add(shown)

    def _read_thoughts(self, tag: Tag) -> None:
        opens = tag.kind == "think"
        if self._draft is not None and not opens:
            if self._draft.quiet:
                self._draft.closed = []
            else:
                self._drop(self._draft, "".join(self._draft.raw[:-1]))
                self._switch(thinking=False)
        elif self._thinking:
            if not opens:
                self._switch(thinking=False)
            elif self._streams[True].begun:
                self._literal(tag.raw)  # else it is the prompt's, once more
        elif self._fences.open():
            self._literal(tag.raw)
        elif opens:
            self._switch(thinking=True)
        elif not self._streams[False].spoken:
            self._streams[False].turn()

    def _begins_call(self, tag: Tag) -> bool:
        if tag.kind == "tool_call":
            return not self._fences.open()
        known = tag.kind == "function" and tag.name in self._schemas
        return known and (not self._thinking or self._fences.line_start) and not self._fences.open()

    def _resolve(self, verdict: Ended | Broken, reader: CallReader, after: str) -> None:
        """A call ended, or is none. after: what was read since, which the reader does not have."""
        if isinstance(verdict, Ended):
            if self._thinking:
                streams = {kind: stream.copy() for kind, stream in self._streams.items()}
                self._draft = _Draft([reader.raw, after], streams, self._called)
                self._sink = self._draft.events
            self._call(verdict)
            for part in self._lexer.split(verdict.rest):
                self._read(part)
        elif verdict.thoughts_end is None:
            self._literal(reader.raw, f"malformed tool call: {verdict.fault}")
            self._broken = True
        else:
            raw = reader.raw
            thoughts = raw[: verdict.thoughts_end]
            if self._draft is not None:
                whole = "".join(self._draft.raw)
                self._drop(self._draft, whole[: len(whole) - len(after) - len(raw)] + thoughts)
            else:
                self._say(thoughts)
            self._switch(thinking=False)
            for part in self._lexer.split(raw[verdict.thoughts_end + len("</think>") :]):
                self._read(part)

    def _parameters(self, name: str) -> Parameters | None:
        """Those of a tool; None where there is no such tool."""
        if name not in self._known and name in self._schemas:
            self._known[name] = Parameters.of(self._schemas[name])
        return self._known.get(name)

    def _call(self, ended: Ended) -> None:
        schema = self._schemas.get(ended.name)
        arguments = coerce_arguments(ended.arguments, schema or Schema({}))
        doubts = [f"unknown tool: {ended.name!r}"] * (schema is None) + [f"{ended.name}: {d}" for d in ended.doubts]
        for name in misfits(arguments, schema) if schema is not None else ():
            doubts.append(f"{ended.name}: the value of {name!r} is none that its schema takes")
        if self._broken and not self._thinking:
            space = self._streams[False].rest()
            if space:
                self._add(space)
        self._streams[self._thinking].part()
        self._switch(thinking=False)
        self._sink.append(Event(tool_call=ToolCall(ended.name, arguments), warning="; ".join(doubts) or None))
        self._called = True
        if self._draft is not None:
            self._draft.quiet = True

    def _drop(self, draft: _Draft, thoughts: str) -> None:
        """The draft was one: part of the thoughts."""
        self._streams, self._called = draft.streams, draft.called
        self._draft, self._reader, self._sink = None, None, self._events
        self._thinking, self._broken = True, False
        self._say(thoughts)

    def _switch(self, thinking: bool) -> None:
        if thinking != self._thinking:
            self._streams[self._thinking].part()
        self._streams[thinking].turn()
        self._thinking = thinking
        self._broken = False
        self._fences = Fences()

    def _literal(self, raw: str, warning: str | None = None) -> None:
        self._fences.push(raw)
        self._say(raw, warning)

    def _say(self, text: str, warning: str | None = None) -> None:
        shown = self._streams[self._thinking].push(text)
        if shown:
            self._add(shown, warning)

    def _add(self, text: str, warning: str | None = None) -> None:
        if self._draft is not None:
            self._draft.quiet = False
        self._sink.append(Event(None, text, None, warning) if self._thinking else Event(text, None, None, warning))
