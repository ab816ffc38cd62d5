"""From a prompt to pieces of text: tokenization, stop conditions and the figures around prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_delta.engine.decode import Clock, Steps, run
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.text.detokenize import Detokenizer
from mlx_delta.text.stop import StopStrings
from mlx_delta.text.tokenizer import Tokenizer


class Piece(str):
    """Newly completed text: a str, so that ``"".join(generation)`` is the whole of it.

    token: the id that completed it, None for what was held back to the end.
    """

    __slots__ = ("token",)
    token: int | None

    def __new__(cls, text: str, token: int | None) -> Piece:
        piece = super().__new__(cls, text)
        piece.token = token
        return piece

    @property
    def text(self) -> str:
        return str(self)


class Generation:
    """One run of the model over a prompt: iterate over it for its pieces, once; then read its figures.

    token_ids: generated so far, the end token not included. finish_reason: None while it runs, then "stop" (end token
    or stop string) or "length". warnings: what is wrong with the text, if anything. Seconds are wall time: prefill up
    to the first token, decoding after it.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        cache: Cache | None = None,
        prompt_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
        if not prompt:
            raise ArgumentError("prompt: expected at least one token, found none")
        self.prompt_ids = list(prompt)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.clock = Clock()
        self._tokenizer = tokenizer
        self._stops = StopStrings(stop)
        self._sampler = Sampler(params, min(tokenizer.vocab_size, network.config.vocab_size), self.prompt_ids)
        self._network = network
        self._cache = Cache.empty(network.config) if cache is None else cache
        positions = network.config.max_position_embeddings
        self._limit = Limit.of(len(self.prompt_ids), max_new_tokens, positions, "prompt")
        self.warnings: list[str] = []
        self._exclusive = Exclusive("generation")
        self._progress = prompt_progress
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._exclusive:
            return next(self._pieces)

    def text(self) -> str:
        """All the text that has not been iterated over yet."""
        with self._exclusive:
            return "".join(self._pieces)

    @property
    def prompt_seconds(self) -> float:
        return self.clock.prefill_seconds

    @property
    def decode_seconds(self) -> float:
        return self.clock.decode_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return len(self.prompt_ids) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; the first token counts to the prompt."""
        return max(0, len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0

    def steer(self, steps: Steps, row: int) -> None:
        """Any token may come."""

    def _run(self) -> Iterator[Piece]:
        detokenizer = Detokenizer(self._tokenizer, skip_special=True)
        self.clock.start()
        logits = prefill(self._network, mx.array([self.prompt_ids]), self._cache, progress=self._progress)
        steps = Steps(self._network, logits, [self._sampler], self._cache)
        for _, token, _ in run(steps, [self], self._limit.tokens):
            if token in self._tokenizer.eos_token_ids:
                self.finish_reason = "stop"
                break
            self.token_ids.append(token)
            text = self._stops.push(detokenizer.push(token))
            if text:
                yield Piece(text, token)
            if self._stops.stopped:
                self.finish_reason = "stop"
                return
        else:
            self.finish_reason = "length"
            self.warnings += [self._limit.warning] if self._limit.warning is not None else []
        rest = self._stops.push(detokenizer.finish()) + self._stops.finish()
        if rest:
            yield Piece(rest, None)
