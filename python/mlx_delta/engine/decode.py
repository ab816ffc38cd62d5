"""Token after token from a network; knows nothing of text, templates or stop conditions.

Pipelined: while one step runs, the graph of the next is built on its not yet known token, so that the device never
waits for Python.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_delta.engine.sample import Allowed, Sampler
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was before any sampling parameter: its log probability, and the likeliest (id, log
    probability) pairs, descending."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    def head(self, count: int) -> Likelihood:
        """With the ``count`` likeliest alone."""
        return Likelihood(self.token, self.logprob, self.top[:count])


class Clock:
    """Wall time of a sequence in seconds: its prompt, up to the first token; and its decoding, after that."""

    def __init__(self) -> None:
        self._begin = self._first = self._last = 0.0

    def start(self) -> None:
        """The prompt begins."""
        self._begin = time.perf_counter()

    def tick(self, now: float) -> None:
        """A token is there."""
        self._last = now
        self._first = self._first or now

    @property
    def started(self) -> bool:
        return self._begin > 0

    @property
    def prefill_seconds(self) -> float:
        return max(0.0, self._first - self._begin)

    @property
    def decode_seconds(self) -> float:
        return self._last - self._first


class Row(Protocol):
    """What becomes of one sequence's tokens. finish_reason: None while it goes on."""

    clock: Clock

    @property
    def finish_reason(self) -> str | None: ...

    def steer(self, steps: Steps, row: int) -> None:
        """Before the next token is used: see that it may be."""


class Steps:
    """The tokens of B sequences in lockstep, from logits [B, V]; a sequence can be steered before its token is used.

    One sampler a row. logprobs: None, or how many of the likeliest tokens ``likelihoods`` tells besides the chosen one.
    whole: false where an exception within a step left the cache half advanced, or a token unknown that it covers.
    """

    def __init__(
        self,
        network: Network,
        logits: mx.array,
        samplers: Sequence[Sampler],
        cache: Cache,
        *,
        logprobs: int | None = None,
    ) -> None:
        self.likelihoods: list[Likelihood] = []
        self.whole = True
        self._network = network
        self._samplers = samplers
        self._cache = cache
        self._logprobs = logprobs
        self._tokens: mx.array
        self._sample(logits)

    def next(self, *, last: bool = False) -> list[int]:
        """The next token of each row. Unless ``last``, the cache covers it on return: what follows it is computed."""
        tokens, logits = self._tokens, self._logits
        self.whole = False
        if not last:
            self._sample(self._network(tokens[:, None], self._cache)[:, 0])
        ids = np.array(tokens).tolist()
        if self._logprobs is not None:
            self.likelihoods = _likelihoods(logits[:, : self._samplers[0].vocab_size], ids, self._logprobs)
        self.whole = True
        return ids

    def restrict(self, row: int, allowed: Allowed) -> None:
        """The row's next token, chosen already but not used, is chosen again among ``allowed`` alone."""
        sampler = self._samplers[row]
        sampler.forget()
        chosen = sampler.sample(self._logits[row : row + 1], allowed)
        if len(self._samplers) > 1:
            chosen = mx.concatenate([self._tokens[:row], chosen, self._tokens[row + 1 :]])
        self._tokens = chosen

    def _sample(self, logits: mx.array) -> None:
        self._logits = logits
        rows = [sampler.sample(logits[i : i + 1]) for i, sampler in enumerate(self._samplers)]
        self._tokens = rows[0] if len(rows) == 1 else mx.concatenate(rows)
        mx.async_eval(self._tokens, *(a for sampler in self._samplers for a in sampler.arrays()))


def run(steps: Steps, rows: Sequence[Row], most: int) -> Iterator[tuple[int, int, Likelihood | None]]:
    """(row, token, likelihood) of each row that goes on, step by step, until all have finished, ``most`` steps at most.

    When a token is yielded, the cache already covers it (except in the last step): it is being computed.
    """
    for count in range(1, most + 1):
        going = [i for i, row in enumerate(rows) if row.finish_reason is None]
        if not going:
            return
        for i in going:
            rows[i].steer(steps, i)
        tokens = steps.next(last=count == most)
        now = time.perf_counter()
        for i in going:
            rows[i].clock.tick(now)
            yield i, tokens[i], steps.likelihoods[i] if steps.likelihoods else None


def _likelihoods(logits: mx.array, ids: Sequence[int], count: int) -> list[Likelihood]:
    logits = logits.astype(mx.float32)
    values = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    found = []
    for token, row in zip(ids, values, strict=True):
        best = _largest(row, count)
        found.append(Likelihood(token, float(row[token]), tuple((int(i), float(row[i])) for i in best)))
    return found


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """The ids of the largest values, descending, ties to the lowest id: only what may be among them is sorted."""
    if not 0 < count < row.size:
        return np.argsort(-row, kind="stable")[:count]
    ids = np.flatnonzero(row >= np.partition(row, -count)[-count])
    return ids[np.argsort(-row[ids], kind="stable")][:count]
