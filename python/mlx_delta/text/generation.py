"""From a prompt to pieces of text: tokenization, stop conditions and the figures around prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.sample import Allowed, Sampler, SamplingParams, seeded
from mlx_delta.engine.sequence import Clock, TokenSequence, Told, told
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.pictures import PicturePart
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


class _Reader:
    """Tokens to pieces of text. It knows nothing of the iteration, so that one that is forgotten ends at once."""

    def __init__(self, tokenizer: Tokenizer, limit: Limit, stop: Sequence[str]) -> None:
        self.clock = Clock()
        self.token_ids: list[int] = []
        self.likelihoods: list[Likelihood] = []
        self.finish_reason: str | None = None
        self.warnings: list[str] = []
        self._tokenizer = tokenizer
        self._limit = limit
        self._stops = StopStrings(stop)
        self._detokenizer = Detokenizer(tokenizer, skip_special=True)

    def allowed(self) -> Allowed | None:
        """Any token may come."""
        return None

    def push(self, token: int, likelihood: Likelihood | None) -> list[Piece]:
        """The piece that this token completes, if it does."""
        if token in self._tokenizer.eos_token_ids:
            return self._end("stop")
        self.token_ids.append(token)
        if likelihood is not None:
            self.likelihoods.append(likelihood)
        text = self._stops.push(self._detokenizer.push(token))
        pieces = [Piece(text, token)] if text else []
        if self._stops.stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._limit.tokens:
            self.warnings += [self._limit.warning] if self._limit.warning is not None else []
            pieces += self._end("length")
        return pieces

    def _end(self, reason: str) -> list[Piece]:
        self.finish_reason = reason
        rest = self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        return [Piece(rest, None)] if rest else []


class Generation:
    """One run of the model over a prompt: iterate over it for its pieces, once; then read its figures. Seconds are wall
    time: prefill up to the first token, decoding after it."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        cache: Cache | None = None,
        drafts: int | None = 0,
        prompt_progress: Callable[[int, int], None] | None = None,
        logprobs: int | None = None,
        pictures: PicturePart | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
        if not prompt:
            raise ArgumentError("prompt: expected at least one token, found none")
        self.prompt_ids = list(prompt)
        config = engine.network.config
        if engine.lead is not None:
            params = seeded(params)
        options = {"params": asdict(params), "max_new_tokens": max_new_tokens, "stop": stop, "drafts": drafts}

        ids = self.prompt_ids

        def to_others() -> Told:  # which knows nothing of self: no circle
            return told("generation", {"ids": ids, "options": {**options, "logprobs": logprobs}}, pictures, ids)

        sampler = Sampler(params, min(tokenizer.vocab_size, config.vocab_size), self.prompt_ids)
        limit = Limit.of(len(self.prompt_ids), max_new_tokens, config.max_position_embeddings, "prompt")
        self._reader = _Reader(tokenizer, limit, stop)
        self._sequence = TokenSequence(
            self.prompt_ids,
            cache,
            sampler,
            self._reader,
            most=limit.tokens,
            logprobs=logprobs,
            progress=prompt_progress,
            pictures=pictures,
            speculation=engine.speculation(self.prompt_ids, drafts),
            told=to_others,
        )
        self._exclusive = Exclusive("generation")
        self._engine = engine
        self._pieces = engine.run(self._sequence)

    @property
    def sequence(self) -> TokenSequence:
        """What it generates."""
        return self._sequence

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._exclusive:
            return next(self._pieces)

    def text(self) -> str:
        """All the text that has not been iterated over yet."""
        with self._exclusive:
            return "".join(self._pieces)

    def close(self) -> None:
        """End it now, from any thread, while its prompt is read too: a thread that waits for a piece gets no more."""
        self._engine.cancel(self._sequence)

    @property
    def token_ids(self) -> list[int]:
        """Generated so far, the end token not included."""
        return self._reader.token_ids

    @property
    def likelihoods(self) -> list[Likelihood]:
        """Of ``token_ids``, with so many of the likeliest as ``logprobs`` says; [] where it says nothing."""
        return self._reader.likelihoods

    @property
    def finish_reason(self) -> str | None:
        """None while it runs, then "stop" (end token or stop string) or "length"."""
        return self._reader.finish_reason

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, how many were kept from earlier ones and not computed."""
        return self._sequence.known

    @property
    def drafted_tokens(self) -> int:
        """Tokens that were drafted and checked so far."""
        return self._sequence.drafted[0]

    @property
    def accepted_tokens(self) -> int:
        """Of these, how many came true."""
        return self._sequence.drafted[1]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the text, if anything."""
        return self._reader.warnings

    @property
    def prompt_seconds(self) -> float:
        return self._reader.clock.prefill_seconds

    @property
    def decode_seconds(self) -> float:
        return self._reader.clock.decode_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return len(self.prompt_ids) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; the first token counts to the prompt."""
        return max(0, len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0
