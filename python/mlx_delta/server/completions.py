"""/v1/completions: a prompt as it stands, continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_delta.chat.request import ends_in_thoughts
from mlx_delta.chat.result import Usage
from mlx_delta.chat.settings import GenerationSettings
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.errors import ArgumentError, RequestError
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.limits import Limits
from mlx_delta.text.generation import Generation

_PIECE = 64  # tokens of a prompt whose logits are held at once: a row of them is a megabyte with a large vocabulary


@dataclass(frozen=True)
class Outcome:
    """finish_reason: "stop" or "length"."""

    finish_reason: str
    usage: Usage


@dataclass(frozen=True)
class CompletionEvent:
    """tokens: how likely those since the event before were; None for a prompt's first, which nothing comes before."""

    text: str = ""
    tokens: tuple[tuple[int, Likelihood | None], ...] = ()
    done: bool = False
    result: Outcome | None = None


class CompletionStream:
    """One prompt's continuation: ``echo`` tells the prompt before it.

    Raises: ArgumentError naming the argument; RequestError 422 for a prompt beyond the limit.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str | Sequence[int],
        options: Mapping[str, Any],
        limits: Limits,
        *,
        max_tokens: int,
        echo: bool,
        logprobs: int | None,
    ) -> None:
        self._model = model
        self._echo, self._logprobs = echo, logprobs
        self._ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(limits)
        self._text = prompt if isinstance(prompt, str) else model.tokenizer.decode(self._ids)
        self._generation: Generation | None = None
        if max_tokens:
            settings = GenerationSettings(**options, max_new_tokens=min(max_tokens, limits.answer_tokens))
            thinking = ends_in_thoughts(self._text, model.tokenizer.markup)
            self._generation = Generation(
                model.engine,
                model.tokenizer,
                self._ids,
                settings.sampling(thinking, model.config.text, model.tokenizer),
                max_new_tokens=settings.max_new_tokens,
                stop=settings.stop,
                drafts=settings.speculate,
                logprobs=logprobs,
            )

    @property
    def prompt_tokens(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[CompletionEvent]:
        if self._echo:
            yield CompletionEvent(self._text, self._prompt_likelihoods())
        told = 0
        for piece in self._generation or ():
            likelihoods = self._likelihoods(told)
            told += len(likelihoods)
            yield CompletionEvent(piece.text, likelihoods)
        yield CompletionEvent(tokens=self._likelihoods(told), done=True, result=self.result())

    def rest(self) -> None:
        """Token ids are all that it holds."""

    def close(self) -> None:
        """End it within a step, from any thread."""
        if self._generation is not None:
            self._generation.close()

    def result(self) -> Outcome:
        generation = self._generation
        if generation is None:
            return Outcome("length", Usage(prompt_tokens=len(self._ids), prefilled_tokens=len(self._ids)))
        usage = Usage(
            prompt_tokens=len(self._ids),
            cached_tokens=generation.cached_tokens,
            prefilled_tokens=len(self._ids) - generation.cached_tokens,
            completion_tokens=len(generation.token_ids),
            drafted_tokens=generation.drafted_tokens,
            accepted_tokens=generation.accepted_tokens,
        )
        return Outcome(generation.finish_reason or "stop", usage)

    def _likelihoods(self, first: int) -> tuple[tuple[int, Likelihood | None], ...]:
        if self._generation is None or self._logprobs is None:
            return ()
        return tuple((each.token, each) for each in self._generation.likelihoods[first:])

    def _prompt_likelihoods(self) -> tuple[tuple[int, Likelihood | None], ...]:
        if self._logprobs is None:
            return ()
        cache, ids = self._model.make_cache(), self._ids
        found: list[tuple[int, Likelihood | None]] = [(ids[0], None)]
        for start in range(0, len(ids) - 1, _PIECE):
            piece = ids[start : min(start + _PIECE, len(ids) - 1)]
            logits = self._model.forward(mx.array([piece]), cache)[0, :, : self._model.tokenizer.vocab_size]
            following = ids[start + 1 : start + 1 + len(piece)]
            found += [(t, Likelihood.of(logits[i : i + 1], t, self._logprobs)) for i, t in enumerate(following)]
        return tuple(found)

    def _check(self, limits: Limits) -> None:
        if not self._ids:
            raise ArgumentError("prompt: expected at least one token, found none")
        most = self._model.tokenizer.vocab_size
        wrong = next((i for i in self._ids if not 0 <= i < most), None)
        if wrong is not None:
            raise ArgumentError(f"prompt: expected token ids below {most}, found {wrong}")
        if limits.prompt_tokens is not None and len(self._ids) > limits.prompt_tokens:
            found = f"expected at most {limits.prompt_tokens} tokens, found {len(self._ids)}"
            raise RequestError(422, f"prompt: {found}", param="prompt", code="context_length_exceeded")
