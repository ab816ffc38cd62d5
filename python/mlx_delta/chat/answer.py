"""One answer as it grows: tokens in, events out, and what the next token may be; knows nothing of networks or caches.

What is forced (the end of thoughts that are over budget, the head of a call that must be made) is a set of token
sequences, of which the answer has to follow one: a single one leaves no choice, several tools' heads leave the model
to choose the tool and nothing else. A schema binds the text alone: thoughts are free, and where tools may be called
the first token chooses between a call and the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_delta.chat.parse import Event, OutputParser
from mlx_delta.chat.request import ChatSettings
from mlx_delta.chat.result import ChatEvent, ChatResult, TokenLogprob, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.engine.decode import Likelihood, Steps
from mlx_delta.engine.sample import Allowed, Sampler
from mlx_delta.text.detokenize import Detokenizer
from mlx_delta.text.grammar import JsonGrammar
from mlx_delta.text.stop import StopStrings
from mlx_delta.text.tokenizer import Tokenizer

_CLOSE = "</think>\n\n"


class Answer:
    """The state of one answer. sampler: its own. thinking: whether the prompt ended inside thoughts.

    finish_reason: None while it goes on. token_ids: so far, the end token not included. text, thinking, tool_calls,
    warnings, logprobs: all there is so far.
    """

    def __init__(self, tokenizer: Tokenizer, settings: ChatSettings, sampler: Sampler, *, thinking: bool) -> None:
        self.finish_reason: str | None = None
        self.token_ids: list[int] = []
        self.thinking_tokens = 0
        self.text = ""
        self.thinking = ""
        self.tool_calls: list[ToolCall] = []
        self.warnings: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self._tokenizer = tokenizer
        self._settings = settings
        self._sampler = sampler
        self._parser = OutputParser(settings.tools or (), thinking=thinking)
        self._detokenizer = Detokenizer(tokenizer, skip_special=True)
        self._stops = StopStrings(settings.stop)
        self._shown_logprobs = 0
        self._tail = ""  # the end of the output as written
        self._forced: list[list[int]] = []  # what the output may go on with; [] leaves it free
        self._must_call = bool(settings.forced_names)
        self._call_token = tokenizer.token_id("<tool_call>")
        self._called = False  # a call has begun: no document comes any more
        self._grammar = None if settings.schema is None else JsonGrammar(tokenizer, settings.schema)
        self._in_document = False
        self._banned: frozenset[int] = frozenset()  # as the sampler has it
        self._steer(was_thinking=False)
        self._ban()

    def steer(self, steps: Steps, row: int) -> None:
        """Before the row's next token is used: see that it may be, and that the one after it will be."""
        allowed = self._allowed()
        if allowed is not None:
            steps.restrict(row, allowed)
        self._ban()

    def push(self, token: int, likelihood: Likelihood | None = None) -> list[ChatEvent]:
        """The events that this token completes; sets ``finish_reason`` when it ends the answer."""
        if token in self._tokenizer.eos_token_ids:
            return self._end("stop")
        self.token_ids.append(token)
        if likelihood is not None:
            self.logprobs.append(self._logprob(likelihood))
        was_thinking = self._parser.thinking and not (self._parser.calling or self._parser.drafted)
        self.thinking_tokens += was_thinking
        piece = self._detokenizer.push(token)
        self._tail = (self._tail + piece)[-1:]
        self._note_document(token)
        events = self._events(self._parse(piece))
        if self.finish_reason is None and self._named and self._parser.called:
            return events + self._end("stop")  # the one call that was asked for is there
        if self.finish_reason is None and self._in_document and self._grammar and self._grammar.done:
            return events + self._end("stop")
        if self.finish_reason is None and len(self.token_ids) == self._settings.max_new_tokens:
            return events + self._end("length")
        if self._forced:
            self._forced = [path[1:] for path in self._forced if path[0] == token]
            self._forced = [] if [] in self._forced else self._forced
        if not self._forced:
            self._steer(was_thinking)
        return events

    def result(self, usage: Usage) -> ChatResult:
        """All of it; "interrupted" when it has not ended."""
        return ChatResult(
            text=self.text,
            thinking=self.thinking,
            tool_calls=list(self.tool_calls),
            finish_reason=self.finish_reason or "interrupted",
            num_tokens=len(self.token_ids),
            usage=usage,
            warnings=list(self.warnings),
            logprobs=tuple(self.logprobs),
        )

    @property
    def _named(self) -> bool:
        return self._settings.tool_choice not in ("none", "auto", "required")

    def _steer(self, was_thinking: bool) -> None:
        """Begin to force what has to come next, if anything; never inside a call, which ends thoughts by itself."""
        if self._parser.calling or (self._parser.drafted and not self._must_call):
            return
        heads = [f"<tool_call>\n<function={name}>\n" for name in self._settings.forced_names if self._must_call]
        budget = self._settings.thinking_budget
        if self._parser.thinking:
            if budget is None or self.thinking_tokens < budget:
                return
            close = _CLOSE if self._tail == "\n" else "\n" + _CLOSE
        else:
            close = "\n\n" if was_thinking else ""  # the template's own way on from thoughts
            if not heads and self._grammar is None:
                return
        self._must_call = False
        self._called = self._called or bool(heads)
        self._forced = [path for path in (self._tokenizer.encode(close + head) for head in heads or [""]) if path]

    def _allowed(self) -> Allowed | None:
        """What the next token has to be one of; None leaves it free."""
        if self._forced:
            return {path[0] for path in self._forced}
        if self._grammar is None or self._parser.thinking or self._parser.calling:
            return None
        if self._called or self.tool_calls:  # nothing but more calls
            more = self._tokenizer.encode("\n</tool_call><tool_call>")
            return {*more, *self._tokenizer.eos_token_ids}
        allowed = self._grammar.allowed()
        if not self._in_document and self._may_call and self._call_token is not None:
            allowed = allowed.copy()
            allowed[self._call_token] = True
        return allowed

    @property
    def _may_call(self) -> bool:
        return bool(self._settings.tools) and self._settings.tool_choice != "none"

    def _note_document(self, token: int) -> None:
        """Where the answer writes a document, this token is part of it."""
        if self._grammar is None or self._forced or self._parser.thinking or self._parser.calling:
            return
        if token == self._call_token and not self._in_document:
            self._called = True
        elif not self._called and not self.tool_calls:
            self._in_document = True
            self._grammar.push(token)

    def _parse(self, piece: str) -> list[Event]:
        """A document is text, whatever tags its strings hold."""
        if self._in_document:
            return [Event(text=piece)] if piece else []
        return self._parser.push(piece)

    def _ban(self) -> None:
        """Keep the sampler from ids that must not come now: a call, or the end before a call that must be made is."""
        banned = set() if self._call_token is None else {self._call_token}
        if not self._must_call and (self._may_call or (self._grammar is None and self._settings.tool_choice != "none")):
            banned = set()  # else not yet: thoughts end by their own tag first
        if self._settings.forced_names and not self._parser.called:
            banned |= set(self._tokenizer.eos_token_ids)  # the call is still to come, or to be completed
        if self._grammar is not None and self._parser.thinking and not self._parser.drafted:
            banned |= set(self._tokenizer.eos_token_ids)  # the document is still to come
        if banned != self._banned:
            self._sampler.ban(banned)
            self._banned = frozenset(banned)

    def _end(self, reason: str) -> list[ChatEvent]:
        events = self._events(self._parse(self._detokenizer.finish()) + self._parser.finish(cut=reason == "length"))
        if self.finish_reason is None:  # else the last of it held a stop string
            held = self._stops.finish()
            if held:
                events.append(self._show(ChatEvent(text=held)))
            self.finish_reason = "tool_calls" if reason == "stop" and self.tool_calls else reason
        return events

    def _events(self, parsed: Sequence[Event]) -> list[ChatEvent]:
        """As they are shown, up to a stop string."""
        events: list[ChatEvent] = []
        for event in parsed:
            if event.text is not None:
                shown = self._stops.push(event.text)
                if shown or event.warning:
                    events.append(self._show(ChatEvent(text=shown, warning=event.warning)))
                if self._stops.stopped:
                    self.finish_reason = "stop"
                    break
                continue
            held = self._stops.finish()
            if held:
                events.append(self._show(ChatEvent(text=held)))
            if event.tool_call is not None and self._settings.tool_choice == "none":
                warning = f"tool_choice is 'none': left out a call of {event.tool_call.name!r}"
                events.append(self._show(ChatEvent(warning=warning)))
            else:
                thinking = event.thinking or ""
                events.append(self._show(ChatEvent("", thinking, event.tool_call, event.warning)))
        return events

    def _show(self, event: ChatEvent) -> ChatEvent:
        self.text += event.text
        self.thinking += event.thinking
        if event.tool_call is not None:
            self.tool_calls.append(event.tool_call)
        if event.warning is not None:
            self.warnings.append(event.warning)
        return replace(event, num_tokens=len(self.token_ids), logprobs=self.unshown_logprobs())

    def unshown_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens since the event before."""
        logprobs = tuple(self.logprobs[self._shown_logprobs :])
        self._shown_logprobs = len(self.logprobs)
        return logprobs

    def _logprob(self, likelihood: Likelihood) -> TokenLogprob:
        text = self._tokenizer.decode([likelihood.token])
        return TokenLogprob(likelihood.token, text, likelihood.logprob, likelihood.top)
