"""One answer as it grows: tokens in, events out; knows nothing of networks or caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_delta.chat.constraints import Constraints, Output
from mlx_delta.chat.parse import Event, OutputParser
from mlx_delta.chat.result import ChatEvent, ChatResult, TokenLogprob, Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.tools import ToolCall
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.sample import Allowed, Sampler
from mlx_delta.engine.sequence import Clock
from mlx_delta.text.detokenize import Detokenizer
from mlx_delta.text.stop import StopStrings
from mlx_delta.text.tokenizer import Tokenizer


class Answer:
    """The state of one answer. sampler: its own. thinking: whether the prompt ended inside thoughts. written: what the
    prompt holds of the answer (or of its thoughts) already, which is not told again.
    limit: how long it may get; None: as long as the settings say.

    finish_reason: None while it goes on. token_ids: so far, the end token not included. text, thinking, tool_calls,
    warnings, logprobs: all there is so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: ChatSettings,
        sampler: Sampler,
        *,
        thinking: bool,
        limit: Limit | None = None,
        written: str = "",
    ) -> None:
        self.finish_reason: str | None = None
        self.clock = Clock()
        self.token_ids: list[int] = []
        self.text = ""
        self.thinking = ""
        self.tool_calls: list[ToolCall] = []
        self.warnings: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self._tokenizer = tokenizer
        self._settings = settings
        self._sampler = sampler
        self._limit = limit or Limit(settings.max_new_tokens)
        self._parser = OutputParser(settings.tools or (), thinking=thinking)
        self._detokenizer = Detokenizer(tokenizer, skip_special=True)
        self._stops = StopStrings(settings.stop)
        self._shown_logprobs = 0
        if written:
            self._parser.go_on(written)
        self._output = Output(self._parser, tool_calls=self.tool_calls, written="" if thinking else written)
        self._constraints = Constraints(tokenizer, settings, self._output)
        self._banned: set[int] = set()  # as the sampler has it
        self._ban()

    def allowed(self) -> Allowed | None:
        """What the next token, before it is used, has to be one of. Bans what must not follow it, too."""
        allowed = self._constraints.allowed()
        self._ban()
        return allowed

    def push(self, token: int, likelihood: Likelihood | None = None) -> list[ChatEvent]:
        """The events that this token completes; sets ``finish_reason`` when it ends the answer."""
        if token in self._tokenizer.eos_token_ids:
            return self._end("stop")
        self.token_ids.append(token)
        if likelihood is not None:
            self.logprobs.append(self._logprob(likelihood))
        output, parser = self._output, self._parser
        was_thinking = parser.thinking and not (parser.calling or parser.drafted)
        piece = self._detokenizer.push(token)
        self._constraints.push(token)
        events = self._events(self._parse(piece))
        output.thinking_tokens += was_thinking
        output.tail = (output.tail + piece)[-1:]
        output.left_thoughts = was_thinking and not parser.thinking
        if self.finish_reason is None and self._constraints.done:
            return events + self._end("stop")
        if self.finish_reason is None and len(self.token_ids) == self._limit.tokens:
            return events + self._end("length")
        self._constraints.begin()
        return events

    def result(
        self, prompt_tokens: int = 0, cached_tokens: int = 0, drafted_tokens: int = 0, accepted_tokens: int = 0
    ) -> ChatResult:
        """All of it; "interrupted" when it has not ended. cached_tokens: of the prompt, not computed again. The others
        as in ``Usage``."""
        usage = Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            prefilled_tokens=prompt_tokens - cached_tokens if self.clock.started else 0,
            completion_tokens=len(self.token_ids),
            thinking_tokens=self.thinking_tokens,
            drafted_tokens=drafted_tokens,
            accepted_tokens=accepted_tokens,
            prefill_seconds=self.clock.prefill_seconds,
            decode_seconds=self.clock.decode_seconds,
        )
        return ChatResult(
            text=self.text,
            thinking=self.thinking,
            tool_calls=list(self.tool_calls),
            finish_reason=self.finish_reason or "interrupted",
            num_tokens=len(self.token_ids),
            usage=usage,
            warnings=list(self.warnings),
            logprobs=tuple(self.logprobs),
            stop_string=self._stops.found,
        )

    @property
    def thinking_tokens(self) -> int:
        """How many of the tokens were thoughts."""
        return self._output.thinking_tokens

    def _parse(self, piece: str) -> list[Event]:
        """A document is text, whatever tags its strings hold."""
        if self._constraints.verbatim:
            return [Event(text=piece)] if piece else []
        return self._parser.push(piece)

    def _ban(self) -> None:
        """Keep the sampler from ids that must not come now."""
        banned = self._constraints.banned()
        if banned != self._banned:
            self._sampler.ban(banned)
            self._banned = banned

    def _end(self, reason: str) -> list[ChatEvent]:
        events = self._events(self._parse(self._detokenizer.finish()) + self._parser.finish(cut=reason == "length"))
        if self.finish_reason is None:  # else the last of it held a stop string
            held = self._stops.finish()
            if held:
                events.append(self._show(ChatEvent(text=held)))
            self.finish_reason = "tool_calls" if reason == "stop" and self.tool_calls else reason
            if reason == "length" and self._limit.warning is not None:
                events.append(self._show(ChatEvent(warning=self._limit.warning)))
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
