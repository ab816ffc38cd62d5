"""One answer over a cache that may know the beginning of its prompt: an iterator of events."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import mlx.core as mx

from mlx_delta._core import DECODE_TOKENS
from mlx_delta.chat.answer import Answer
from mlx_delta.chat.prefix import PrefixCache
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import ChatEvent, ChatResult, Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.decode import Steps, run
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.prefill import ALIGNED, prefill
from mlx_delta.engine.sample import Sampler
from mlx_delta.model.network import Network
from mlx_delta.text.tokenizer import Tokenizer


class ChatStream:
    """An answer under way: iterate over it for its events; ``result()`` is the whole of it.

    Any thread may take the next event, one at a time. The last event is ``done``. ``close()`` ends it
    early (and so does leaving a ``with`` block); what was there by then is the result, with finish_reason
    "interrupted".
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        prefix: PrefixCache,
        prompt: Prompt,
        settings: ChatSettings,
        turns: list[Usage],
        exclusive: Exclusive,
    ) -> None:
        self._network = network
        self._prefix = prefix
        self._prompt = prompt
        self._turns = turns
        self._exclusive = exclusive
        positions = network.config.max_position_embeddings
        self._limit = Limit.of(len(prompt.ids), settings.max_new_tokens, positions, "messages")
        self._logprobs = settings.logprobs
        self._progress = settings.prompt_progress
        params = settings.sampling(prompt.thinking, network.config, tokenizer)
        self._sampler = Sampler(params, min(tokenizer.vocab_size, network.config.vocab_size), prompt.ids)
        self._answer = Answer(
            tokenizer,
            settings,
            self._sampler,
            thinking=prompt.thinking,
            limit=self._limit,
            written=prompt.written,
        )
        self._cached = 0
        self._result: ChatResult | None = None
        self._events = self._run()

    def __iter__(self) -> Iterator[ChatEvent]:
        return self

    def __next__(self) -> ChatEvent:
        with self._exclusive:
            return next(self._events)

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the answer now, if it has not ended."""
        with self._exclusive:
            self._events.close()
            if self._result is None:
                self._finish()

    def result(self) -> ChatResult:
        """The whole answer: generates what is left of it."""
        with self._exclusive:
            for _ in self._events:
                pass
            return self._result or self._finish()

    def _run(self) -> Generator[ChatEvent, None, None]:
        answer = self._answer
        answer.clock.start()
        logits, self._cached = prefill_prompt(self._network, self._prefix, self._prompt, self._progress)
        steps = Steps(self._network, logits, [self._sampler], self._prefix.cache, logprobs=self._logprobs)
        seen = list(self._prompt.ids)
        try:
            for _, token, likelihood in run(steps, [answer], self._limit.tokens):
                seen.append(token)
                yield from answer.push(token, likelihood)
        finally:
            if steps.whole:  # the cache covers the last token, or all but the last: it knows
                self._prefix.mark(seen[: self._prefix.cache.offset])
        result = self._finish()
        logprobs = answer.unshown_logprobs()
        yield ChatEvent(num_tokens=result.num_tokens, logprobs=logprobs, done=True, result=result)

    def _finish(self) -> ChatResult:
        self._result = self._answer.result(len(self._prompt.ids), self._cached)
        self._turns.append(self._result.usage)
        return self._result


def prefill_prompt(
    network: Network, prefix: PrefixCache, prompt: Prompt, progress: Callable[[int, int], None] | None = None
) -> tuple[mx.array, int]:
    """Logits [1, V] after the prompt, and how many of its tokens were not computed again. Marks where turns go on."""
    cached = start = prefix.resume(prompt.ids, prompt.lasting)
    head = 0 if cached or not prompt.stable else _head_cut(prompt.head())

    def show(done: int, _: int) -> None:
        if progress is not None:
            progress(start - cached + done, len(prompt.ids) - cached)

    for cut in (head, prompt.stable):
        if start < cut < len(prompt.ids):
            prefill(network, mx.array([prompt.ids[start:cut]]), prefix.cache, progress=show)
            start = cut
            prefix.mark(prompt.ids[:start], head=cut == head)
    logits = prefill(network, mx.array([prompt.ids[start:]]), prefix.cache, progress=show)
    prefix.mark(prompt.ids)
    return logits, cached


def _head_cut(head: int) -> int:
    """Where system message and tools are cut: so that what follows, however short, has the bits of one pass."""
    return max(0, head - DECODE_TOKENS) // ALIGNED * ALIGNED
