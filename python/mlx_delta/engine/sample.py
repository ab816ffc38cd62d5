"""Logits to the next token, lazily; knows nothing of models, text or stopping.

Order and definitions follow Hugging Face ``generation/logits_process.py``: repetition penalty, presence penalty
(OpenAI), temperature, top_k, top_p, min_p, and a draw from what is left: all of it is ``ops.sample``. Nothing is
evaluated here, so that a decode loop can build the next step while this one runs.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.errors import ArgumentError

_LEAST, _MOST = 1.2e-38, 3.4e38  # what float32 has: kernels take penalties so
_GREEDY_BELOW = 1e-5  # logits / temperature would leave float32's range; the draw is all but certain anyway
Allowed = Collection[int] | np.ndarray  # ids, or a mask: bool [>= vocab_size]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; the defaults are greedy. Raises ArgumentError naming the parameter.

    temperature: 0 takes the likeliest token, ties to the lowest id. top_k: 0 is off. top_p: 1 is off; else the smallest
    set of likeliest tokens with mass >= top_p. min_p: drops tokens less likely than min_p times the likeliest.
    presence_penalty: subtracted from the logit of every token generated so far. repetition_penalty p: a token of the
    prompt or generated so far has logit / p if positive, else logit * p; 1 is off. seed: None draws a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, ">= 0")
        _check("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "an integer >= 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "> 0 and <= 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, ">= 0 and <= 1")
        _check("presence_penalty", self.presence_penalty, abs(self.presence_penalty) <= _MOST, "a finite number")
        _check("repetition_penalty", self.repetition_penalty, _LEAST <= self.repetition_penalty <= _MOST, "> 0")
        seed_ok = self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**64)
        _check("seed", self.seed, seed_ok, "an integer >= 0 and < 2**64")

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW


def seeded(params: SamplingParams) -> SamplingParams:
    """With a seed, for others to draw the same."""
    return replace(params, seed=secrets.randbits(63)) if params.seed is None else params


def _check(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise ArgumentError(f"{name}: expected {expected}, found {value!r}")


class Sampler:
    """Chooses tokens for one sequence, or for B sequences of one batch that share ``params``.

    Token n of a run is drawn by random word n of the seed, whatever it is chosen from and however often: so a draft is
    accepted exactly if it is the token that would have been drawn without it.

    vocab_size: logits from there on are padding, cut off first. prompt: the ids that repetition_penalty counts besides
    the generated ones: one list for every row, or a list per row. The rows of a batch share one stream of random
    numbers, so a row equals its own single run only with a sampler of its own.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt: Sequence[int] | Sequence[Sequence[int]] = ()
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self._allowed: mx.array | None = None
        self._prompt: mx.array | None = None
        self._generated: mx.array | None = None
        if params.presence_penalty != 0 or params.repetition_penalty != 1:
            self._prompt = _membership(prompt, vocab_size)
            self._generated = self._before = mx.array(np.zeros((1, vocab_size), dtype=np.bool_))
        self._words = None if params.greedy else _Words(params.seed)
        self._choose = partial(
            ops.sample,
            temperature=1.0 if params.greedy else params.temperature,
            top_k=min(params.top_k, vocab_size),
            top_p=params.top_p,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            repetition_penalty=params.repetition_penalty,
            vocab_size=vocab_size,
        )
        self.bans = 0  # how often what is banned has changed

    def sample(self, logits: mx.array, allowed: Allowed | None = None) -> mx.array:
        """logits [B, V] (any float dtype, V >= vocab_size) -> the next tokens [B] int32, lazily.

        allowed: the only ids to choose from, banned or not.
        """
        if logits.ndim != 2 or logits.shape[1] < self.vocab_size:
            raise ArgumentError(f"logits: expected shape [B, >= {self.vocab_size}], found {list(logits.shape)}")
        tokens = self._draw(logits, allowed, self._generated)
        if self._words is not None or self._generated is not None:
            self._count(tokens)
        return tokens

    def ahead(self, logits: mx.array, drafts: mx.array) -> mx.array:
        """logits [R, V] after a token and R - 1 ``drafts`` that may follow it, int [R - 1] -> tokens [R] int32, lazily:
        what ``sample`` chooses of each row, if the drafts before it are what it has chosen. Nothing counts yet."""
        generated = self._generated
        if generated is not None:
            rows = [generated]
            for i in range(drafts.shape[0]):
                rows.append(_with(rows[-1], drafts[i : i + 1]))
            generated = mx.concatenate(rows)
        return self._draw(logits, None, generated)

    def take(self, token: mx.array) -> None:
        """As if ``sample`` had chosen it, int [1], one of those that ``ahead`` gave."""
        self._count(token)

    def _draw(self, logits: mx.array, allowed: Allowed | None, generated: mx.array | None) -> mx.array:
        return self._choose(
            logits,
            None if self._words is None else mx.array(self._words.next(logits.shape[0])),
            allowed=self._allowed if allowed is None else _allowed_mask(allowed, self.vocab_size),
            prompt=self._prompt,
            generated=generated,
        )

    def _count(self, tokens: mx.array) -> None:
        if self._words is not None:
            self._words.use(tokens.shape[0])
        if self._generated is not None:
            self._before = self._generated
            self._generated = _with(self._generated, tokens)

    def ban(self, ids: Collection[int]) -> None:
        """From now on, these ids (and no others) are never chosen."""
        self.bans += 1
        self._allowed = None
        if ids:
            allowed = np.ones((1, self.vocab_size), dtype=np.bool_)
            allowed[0, list(ids)] = False
            self._allowed = mx.array(allowed)

    def arrays(self) -> list[mx.array]:
        """What it remembers; to be evaluated beside the tokens, for any thread to go on with."""
        return [] if self._generated is None else [self._generated]

    def forget(self) -> None:
        """The tokens sampled last are not used: they do not count as generated, and others are drawn by their words."""
        if self._words is not None:
            self._words.take_back()
        if self._generated is not None:
            self._generated = self._before


class _Words:
    """Random words of 64 bits in a row, looked at before they are used."""

    def __init__(self, seed: int | None) -> None:
        # The raw words of a bit generator are the same in every version of numpy.
        self._random = np.random.PCG64(seed)
        self._ready: list[int] = []
        self._last: list[int] = []  # those used last

    def next(self, count: int) -> np.ndarray:
        if len(self._ready) < count:
            self._ready += self._random.random_raw(count - len(self._ready)).tolist()
        return np.array(self._ready[:count], dtype=np.uint64)

    def use(self, count: int) -> None:
        self.next(count)
        self._last, self._ready = self._ready[:count], self._ready[count:]

    def take_back(self) -> None:
        self._ready, self._last = self._last + self._ready, []


def _with(generated: mx.array, tokens: mx.array) -> mx.array:
    """generated [1 or B, V] with one more token for each row, [B]."""
    rows = mx.broadcast_to(generated, (tokens.shape[0], generated.shape[1]))
    return mx.put_along_axis(rows, tokens[:, None], mx.array(True), axis=-1)


def _allowed_mask(allowed: Allowed, vocab_size: int) -> mx.array:
    """[1, vocab_size] bool"""
    if isinstance(allowed, np.ndarray):
        return mx.array(allowed[None, :vocab_size])
    return _membership(list(allowed), vocab_size)


def _membership(prompt: Sequence[int] | Sequence[Sequence[int]], vocab_size: int) -> mx.array:
    """[1 or B, vocab_size] bool: which ids each row's prompt has."""
    rows = list(prompt) if len(prompt) and isinstance(prompt[0], Sequence) else [prompt]
    mask = np.zeros((len(rows), vocab_size), dtype=np.bool_)
    for row, ids in zip(mask, rows, strict=True):
        index = np.asarray(ids, dtype=np.int64)
        if index.size and not 0 <= index.min() <= index.max() < vocab_size:
            raise ArgumentError(
                f"prompt: expected ids from 0 to {vocab_size - 1}, found {index.min()} to {index.max()}"
            )
        row[index] = True
    return mx.array(mask)
