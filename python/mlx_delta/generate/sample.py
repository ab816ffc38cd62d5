"""Logits to the next token, as lazy mlx operations; knows nothing of models, text or stopping.

Order and definitions follow Hugging Face ``generation/logits_process.py``: repetition penalty, presence penalty
(OpenAI), temperature, top_k, top_p, min_p, and a draw from what is left. All arithmetic is in float32, and nothing is
evaluated here, so that a decode loop can build the next step while this one runs.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

_GREEDY_BELOW = 1e-5  # logits / temperature would leave float32's range; the draw is all but certain anyway
Allowed = Collection[int] | np.ndarray  # ids, or a mask: bool [>= vocab_size]
_BLOCK = 128  # columns per block in _top_k; 64 to 256 are alike for a vocabulary of 248k


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; the defaults are greedy. Raises ValueError naming the parameter.

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
        _check("presence_penalty", self.presence_penalty, math.isfinite(self.presence_penalty), "a finite number")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "> 0")
        seed_ok = self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**64)
        _check("seed", self.seed, seed_ok, "an integer >= 0 and < 2**64")

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW


def _check(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, found {value!r}")


class Sampler:
    """Chooses tokens for one sequence, or for B sequences of one batch that share ``params``.

    vocab_size: logits from there on are padding, cut off first. prompt: the ids that repetition_penalty counts besides
    the generated ones: one list for every row, or a list per row. The rows of a batch share one stream of random
    numbers, so a row equals its own single run only with a sampler of its own.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt: Sequence[int] | Sequence[Sequence[int]] = ()
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self._banned: mx.array | None = None
        self._penalized = params.presence_penalty != 0 or params.repetition_penalty != 1
        if self._penalized:
            self._prompt = _membership(prompt, vocab_size)
            self._generated = self._before = mx.zeros((1, vocab_size), dtype=mx.bool_)
        if not params.greedy:
            self._key = mx.random.key(secrets.randbits(63) if params.seed is None else params.seed)

    def sample(self, logits: mx.array, allowed: Allowed | None = None) -> mx.array:
        """logits [B, V] (any float dtype, V >= vocab_size) -> the next tokens [B] int32, lazily.

        allowed: the only ids to choose from, banned or not.
        """
        if logits.ndim != 2 or logits.shape[1] < self.vocab_size:
            raise ValueError(f"logits: expected shape [B, >= {self.vocab_size}], found {list(logits.shape)}")
        logits = logits[:, : self.vocab_size]
        if allowed is not None:
            logits = mx.where(_allowed_mask(allowed, self.vocab_size), logits, -mx.inf)
        elif self._banned is not None:
            logits = mx.where(self._banned, -mx.inf, logits)
        if self._penalized:
            logits = penalize(logits, self._prompt, self._generated, self.params)
        if self.params.greedy:
            tokens = mx.argmax(logits, axis=-1)
        else:
            self._key, key = mx.random.split(self._key)
            kept, ids = candidates(logits, self.params)
            tokens = mx.random.categorical(kept, axis=-1, key=key)
            if ids is not None:
                tokens = mx.take_along_axis(ids, tokens[:, None], axis=-1)[:, 0]
        if self._penalized:
            self._before = self._generated
            generated = mx.broadcast_to(self._generated, logits.shape)
            self._generated = mx.put_along_axis(generated, tokens[:, None], mx.array(True), axis=-1)
        return tokens.astype(mx.int32)

    def ban(self, ids: Collection[int]) -> None:
        """From now on, these ids (and no others) are never chosen."""
        self._banned = _membership(list(ids), self.vocab_size) if ids else None

    def forget(self) -> None:
        """The tokens sampled last are not used: they do not count as generated."""
        if self._penalized:
            self._generated = self._before


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
            raise ValueError(f"prompt: expected ids from 0 to {vocab_size - 1}, found {index.min()} to {index.max()}")
        row[index] = True
    return mx.array(mask)


def penalize(logits: mx.array, prompt: mx.array, generated: mx.array, params: SamplingParams) -> mx.array:
    """Both penalties: logits [B, V] and masks [1 or B, V] of the ids in the prompt and generated -> [B, V] float32."""
    logits = logits.astype(mx.float32)
    if params.repetition_penalty != 1:
        weakened = mx.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = mx.where(prompt | generated, weakened, logits)
    if params.presence_penalty != 0:
        logits = logits - params.presence_penalty * generated.astype(mx.float32)
    return logits


def candidates(logits: mx.array, params: SamplingParams) -> tuple[mx.array, mx.array | None]:
    """What may be drawn: logits [B, V] -> (logits [B, k] float32 over temperature, ids [B, k] of those columns).

    Softmax of the logits is the distribution to draw from: they are -inf where filtered out. ids is None where no
    filter needed an order, and k = V.
    """
    logits = logits.astype(mx.float32) / params.temperature
    ids = None
    if 0 < params.top_k < logits.shape[1]:
        logits, ids = _top_k(logits, params.top_k)
    elif params.top_p < 1:
        ids = mx.argsort(-logits, axis=-1)
        logits = mx.take_along_axis(logits, ids, axis=-1)
    if params.top_p < 1:
        before = mx.cumsum(mx.softmax(logits, axis=-1), axis=-1, inclusive=False)
        logits = mx.where(before < params.top_p, logits, -mx.inf)
    if params.min_p > 0:
        floor = logits.max(axis=-1, keepdims=True) + math.log(params.min_p)
        logits = mx.where(logits >= floor, logits, -mx.inf)
    return logits, ids


def _top_k(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest of each row, descending, ties to the lowest id: [B, V] -> (logits [B, k], ids [B, k]).

    They lie in the k blocks of columns that have the largest maxima, so only those are sorted: a quarter of the time
    of a partition of 248k columns, which MLX's GPU backend does as a full sort.
    """
    rows, columns = logits.shape
    blocks = -(-columns // _BLOCK)
    padding = blocks * _BLOCK - columns
    blocked = mx.pad(logits, [(0, 0), (0, padding)], constant_values=-mx.inf).reshape(rows, blocks, _BLOCK)
    best = mx.argsort(-blocked.max(axis=-1), axis=-1)[:, :k]
    best = mx.sort(best, axis=-1)[:, :, None]  # ascending ids, so that the stable sort below settles ties
    values = mx.take_along_axis(blocked, best, axis=1).reshape(rows, -1)
    ids = (best * _BLOCK + mx.arange(_BLOCK)).reshape(rows, -1)
    order = mx.argsort(-values, axis=-1)[:, :k]
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)
