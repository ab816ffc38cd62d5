"""How likely a token was, before any sampling parameter."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Likelihood:
    """A token's log probability, and the likeliest (id, log probability) pairs, descending."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: mx.array, token: int, count: int) -> Likelihood:
        """logits [1, V]; count: how many of the likeliest."""
        logits = logits[0].astype(mx.float32)
        row = np.array(logits - mx.logsumexp(logits))
        return cls(token, float(row[token]), tuple((int(i), float(row[i])) for i in _largest(row, count)))


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """The ids of the largest values, descending, ties to the lowest id: only what may be among them is sorted."""
    if not 0 < count < row.size:
        return np.argsort(-row, kind="stable")[:count]
    ids = np.flatnonzero(row >= np.partition(row, -count)[-count])
    return ids[np.argsort(-row[ids], kind="stable")][:count]
