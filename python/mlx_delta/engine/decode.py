"""Token after token from a network; knows nothing of text, templates or stop conditions.

Pipelined: while one step runs, the graph of the next is built on its not yet known token, so that the device never
waits for Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta.engine.sample import Allowed, Sampler
from mlx_delta.model.cache import Cache
from mlx_delta.model.qwen3_5 import Network


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


class Steps:
    """The tokens of B sequences in lockstep, from logits [B, V]; a sequence can be steered before its token is used.

    One sampler a row. logprobs: None, or how many of the likeliest tokens ``likelihoods`` tells besides the chosen one.
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
        self._network = network
        self._samplers = samplers
        self._cache = cache
        self._logprobs = logprobs
        self._tokens: mx.array
        self._sample(logits)

    def next(self, *, last: bool = False) -> list[int]:
        """The next token of each row. Unless ``last``, the cache covers it on return: what follows it is computed."""
        tokens, logits = self._tokens, self._logits
        if not last:
            self._sample(self._network(tokens[:, None], self._cache)[:, 0])
        ids = np.array(tokens).tolist()
        if self._logprobs is not None:
            self.likelihoods = _likelihoods(logits[:, : self._samplers[0].vocab_size], ids, self._logprobs)
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
        mx.async_eval(self._tokens)


def decode(network: Network, logits: mx.array, sampler: Sampler, cache: Cache, max_new_tokens: int) -> Iterator[int]:
    """Up to ``max_new_tokens`` tokens of one sequence, the first from logits [1, V].

    When a token is yielded, the cache already covers it (except after the last one): it is being computed.
    """
    steps = Steps(network, logits, [sampler], cache)
    for count in range(1, max_new_tokens + 1):
        (token,) = steps.next(last=count == max_new_tokens)
        yield token


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
