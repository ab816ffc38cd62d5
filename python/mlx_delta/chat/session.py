"""Turns of a conversation over one cache: what earlier turns computed is not computed again.

A turn can go on from the end of the conversation before it (the last tokens of a prompt open an answer, and are gone
from the next prompt, as are thoughts), from the end of its prompt, and from the end of its answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_delta.chat.answer import Answer
from mlx_delta.chat.api import ChatMethods
from mlx_delta.chat.messages import Message
from mlx_delta.chat.prefix import PrefixCache
from mlx_delta.chat.request import ChatSettings, Prompt
from mlx_delta.chat.result import ChatEvent, ChatResult, Usage
from mlx_delta.engine.decode import Steps
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler
from mlx_delta.model.qwen3_5 import Network
from mlx_delta.text.tokenizer import Tokenizer


class Session(ChatMethods):
    """A conversation that keeps its cache between turns. Use ``model.session()``.

    Each turn gets all messages, as ``model.chat`` does: those that the session has seen before, token for token from
    the beginning, cost nothing; a changed history is computed again from the last snapshot before the change. Not for
    several threads, and one turn at a time: starting a turn ends the one before it.

    goes_on: False for a single turn, which computes its prompt in one go, as a batch does.
    turns: the usage of every turn that ended.
    """

    def __init__(self, network: Network, tokenizer: Tokenizer, *, goes_on: bool = True) -> None:
        self.turns: list[Usage] = []
        self._goes_on = goes_on
        self._network = network
        self._tokenizer = tokenizer
        self._prefix = PrefixCache(network.config)
        self._stream: ChatStream | None = None

    def reset(self) -> None:
        """Forget everything, and free its memory."""
        self._end_turn()
        self._prefix = PrefixCache(self._network.config)
        self.turns.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all states, keys and values held."""
        return self._prefix.nbytes

    def _start(self, messages: Sequence[Message], settings: ChatSettings) -> ChatStream:
        prompt = Prompt.build(self._tokenizer, messages, settings)
        self._end_turn()
        if not self._goes_on:
            prompt = replace(prompt, stable=0)
        self._stream = ChatStream(self._network, self._tokenizer, self._prefix, prompt, settings, self.turns)
        return self._stream

    def _end_turn(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def prefill_prompt(network: Network, prefix: PrefixCache, prompt: Prompt) -> tuple[mx.array, int]:
    """Logits [1, V] after the prompt, and how many of its tokens were not computed again. Marks where turns go on."""
    cached = start = prefix.resume(prompt.ids, prompt.lasting)
    if start < prompt.stable < len(prompt.ids):
        prefill(network, mx.array([prompt.ids[start : prompt.stable]]), prefix.cache)
        start = prompt.stable
        prefix.mark(prompt.ids[:start])
    logits = prefill(network, mx.array([prompt.ids[start:]]), prefix.cache)
    prefix.mark(prompt.ids)
    return logits, cached


class ChatStream:
    """An answer under way: iterate over it for its events; ``result()`` is the whole of it.

    The last event is ``done``. ``close()`` ends it early (and so does leaving a ``with`` block); what was there by then
    is the result, with finish_reason "interrupted".
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        prefix: PrefixCache,
        prompt: Prompt,
        settings: ChatSettings,
        turns: list[Usage],
    ) -> None:
        self._network = network
        self._prefix = prefix
        self._prompt = prompt
        self._turns = turns
        self._max_new_tokens = settings.max_new_tokens
        self._logprobs = settings.logprobs
        params = settings.sampling(prompt.thinking, network.config, tokenizer)
        self._sampler = Sampler(params, min(tokenizer.vocab_size, network.config.vocab_size), prompt.ids)
        self._answer = Answer(tokenizer, settings, self._sampler, thinking=prompt.thinking)
        self._cached = 0
        self._begin = self._first = self._last = 0.0
        self._result: ChatResult | None = None
        self._events = self._run()

    def __iter__(self) -> Iterator[ChatEvent]:
        return self._events

    def __next__(self) -> ChatEvent:
        return next(self._events)

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the answer now, if it has not ended."""
        self._events.close()
        if self._result is None:
            self._finish()

    def result(self) -> ChatResult:
        """The whole answer: generates what is left of it."""
        for _ in self._events:
            pass
        return self._result or self._finish()

    def _run(self) -> Generator[ChatEvent, None, None]:
        answer = self._answer
        self._begin = time.perf_counter()
        logits, self._cached = prefill_prompt(self._network, self._prefix, self._prompt)
        steps = Steps(self._network, logits, [self._sampler], self._prefix.cache, logprobs=self._logprobs)
        seen = list(self._prompt.ids)
        whole = True  # an exception within a step leaves the cache half advanced
        try:
            while answer.finish_reason is None:
                answer.steer(steps, 0)
                whole = False
                (token,) = steps.next(last=len(answer.token_ids) + 1 == self._max_new_tokens)
                whole = True
                seen.append(token)
                self._last = time.perf_counter()
                self._first = self._first or self._last
                yield from answer.push(token, steps.likelihoods[0] if steps.likelihoods else None)
        finally:
            if whole:  # the cache covers the last token, or all but the last: it knows
                self._prefix.mark(seen[: self._prefix.cache.offset])
        result = self._finish()
        logprobs = answer.unshown_logprobs()
        yield ChatEvent(num_tokens=result.num_tokens, logprobs=logprobs, done=True, result=result)

    def _finish(self) -> ChatResult:
        usage = Usage(
            prompt_tokens=len(self._prompt.ids),
            cached_tokens=self._cached,
            prefilled_tokens=len(self._prompt.ids) - self._cached if self._begin else 0,
            completion_tokens=len(self._answer.token_ids),
            thinking_tokens=self._answer.thinking_tokens,
            prefill_seconds=max(0.0, self._first - self._begin),
            decode_seconds=max(0.0, self._last - self._first),
        )
        self._turns.append(usage)
        self._result = self._answer.result(usage)
        return self._result
