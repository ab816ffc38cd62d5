"""Ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta.distributed.ranks import Ranks


class Threads(Ranks):
    def __init__(self, rank: int, size: int, shared: Shared, by_layers: bool) -> None:
        self.rank, self.size, self._shared, self.by_layers = rank, size, shared, by_layers
        self._calls = 0

    def restart(self) -> None:
        """Nothing is lazy here."""

    def _all(self, mine: np.ndarray) -> list[np.ndarray]:
        return self._shared.exchange(self.rank, mine)

    def sum(self, x: mx.array) -> mx.array:
        return mx.array(sum(self._all(np.array(x)))).astype(x.dtype)

    def gather(self, x: mx.array) -> mx.array:
        return mx.array(np.stack(self._all(np.array(x))))

    def columns(self, x: mx.array, counts: Sequence[int]) -> mx.array:
        return mx.array(np.concatenate(self._all(np.array(x)), axis=-1))


class Shared:
    """Where they meet."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._parts: list[Any] = [None] * size

    def exchange(self, rank: int, mine: np.ndarray) -> list[np.ndarray]:
        self._parts[rank] = mine
        self._barrier.wait()
        found = list(self._parts)
        self._barrier.wait()
        return found


def on_ranks(size: int, run: Callable[[Threads], Any], *, by_layers: bool = False) -> list[Any]:
    """What ``run`` gives on each rank."""
    shared, found = Shared(size), [None] * size

    def of(rank: int) -> None:
        found[rank] = run(Threads(rank, size, shared, by_layers))

    threads = [threading.Thread(target=of, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
