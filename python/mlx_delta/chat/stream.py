"""One answer under way: an iterator of events."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

from mlx_delta.chat.answer import Answer
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import ChatEvent, ChatResult, Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.sample import Sampler, seeded
from mlx_delta.engine.sequence import TokenSequence, Told, told
from mlx_delta.text.tokenizer import Tokenizer

_OF_THE_PROMPT = ("prompt_progress", "template_variables", "strict")  # settings that count no more once it is there


class ChatStream:
    """An answer under way: iterate over it for its events; ``result()`` is the whole of it.

    The last event is ``done``. ``close()`` ends it early (and so does leaving a ``with`` block); what was there by then
    is the result, with finish_reason "interrupted".
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Prompt,
        settings: ChatSettings,
        turns: list[Usage],
        exclusive: Exclusive,
        argument: str = "messages",
    ) -> None:
        config = engine.network.config
        self._engine = engine
        self._prompt = prompt
        self._turns = turns
        self._exclusive = exclusive
        self._logprobs = settings.logprobs
        self._drafts = settings.speculate
        self._progress = settings.prompt_progress
        self._limit = Limit.of(len(prompt.ids), settings.max_new_tokens, config.max_position_embeddings, argument)
        params = settings.sampling(prompt.thinking, config, tokenizer)
        if engine.lead is not None:
            params = seeded(params)
        self._options: dict[str, Any] = {**settings.options, "seed": params.seed, "tools": settings.tools}
        self._sampler = Sampler(params, min(tokenizer.vocab_size, config.vocab_size), prompt.ids)
        self._answer = Answer(
            tokenizer,
            settings,
            self._sampler,
            thinking=prompt.thinking,
            limit=self._limit,
            written=prompt.written,
        )
        self._closed = False
        self._sequence: TokenSequence | None = None
        self._result: ChatResult | None = None
        self._events: Generator[ChatEvent, None, None] | None = None  # which knows nothing of self: no circle

    def __iter__(self) -> Iterator[ChatEvent]:
        return self

    def __next__(self) -> ChatEvent:
        with self._exclusive:
            if self._result is not None:
                raise StopIteration
            if self._events is None:
                sequence = self.begun()
                if self._closed:  # while it began
                    self._engine.cancel(sequence)
                self._events = self._engine.run(sequence)
            try:
                return next(self._events)
            except StopIteration:
                pass
            except BaseException:
                self._finish()
                raise
            result = self._finish()
            logprobs = self._answer.unshown_logprobs()
            return ChatEvent(num_tokens=result.num_tokens, logprobs=logprobs, done=True, result=result)

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the answer now, if it has not ended: from any thread, while its prompt is read too.

        A thread that waits for an event gets what there is as the last one.
        """
        if self._result is not None:
            return
        self._closed = True
        sequence = self._sequence
        if sequence is not None:
            self._engine.cancel(sequence)
        with self._exclusive.after():
            if self._result is None:
                self._finish()

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self._prompt.ids)

    def result(self) -> ChatResult:
        """The whole answer: generates what is left of it."""
        with self._exclusive:
            for _ in self:
                pass
            return self._result or self._finish()

    def start(self) -> None:
        """Let it be computed beside others from now on, before the first event is asked for."""
        with self._exclusive:
            self._engine.submit(self.begun())

    def rest(self) -> None:
        """For one that has to wait: hold pictures as they were given, which are decoded again when it begins."""
        if self._prompt.pictures is not None:
            self._prompt.pictures.release()

    @property
    def keys(self) -> list[int]:
        """The ids of the prompt and of what is written so far, as a cache knows them: see ``Prompt.keys``."""
        return [*self._prompt.keys, *([] if self._sequence is None else self._sequence.tokens)]

    def begun(self) -> TokenSequence:
        """What it generates."""
        if self._sequence is None:
            prompt, keys = self._prompt, self._prompt.keys
            if prompt.pictures is not None:  # here, and not in a step that others wait for
                prompt.pictures.look(0 if self._engine.lead is not None else self._engine.known(prompt.ids, keys))
            self._sequence = TokenSequence(
                prompt.ids,
                None,
                self._sampler,
                self._answer,
                most=self._limit.tokens,
                logprobs=self._logprobs,
                progress=self._progress,
                pictures=prompt.pictures,
                keys=keys,
                speculation=self._engine.speculation(prompt.ids, self._drafts),
                told=partial(_told, prompt, self._options),
            )
        return self._sequence

    def _finish(self) -> ChatResult:
        if self._events is not None:
            self._events.close()
        known = 0
        if self._sequence is not None:
            self._engine.cancel(self._sequence)
            known = self._sequence.known
        drafts = (0, 0) if self._sequence is None else self._sequence.drafted
        self._result = self._answer.result(len(self._prompt.ids), known, *drafts)
        self._turns.append(self._result.usage)
        return self._result


def _told(prompt: Prompt, options: dict[str, Any]) -> Told:
    options = {name: value for name, value in options.items() if name not in _OF_THE_PROMPT}
    facts = {"ids": prompt.ids, "thinking": prompt.thinking, "written": prompt.written, "options": options}
    return told("chat", facts, prompt.pictures, prompt.keys)
