"""The processes that run a model together."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence, Set

import mlx.core as mx
import numpy as np

from mlx_delta.distributed.meeting import begin
from mlx_delta.distributed.watch import connections
from mlx_delta.errors import RankError


class Ranks:
    """A group of at least two processes, as one of them sees it. rank: this one's, from 0. size: how many there are."""

    def __init__(self, group: mx.distributed.Group, connections: Set[int] = frozenset()) -> None:
        self.rank, self.size = group.rank(), group.size()
        self.connections = connections  # to other ranks, as file descriptors
        self._group = group
        self.restart()

    def restart(self) -> None:
        """What was built and is not to be computed is forgotten."""
        self._last: mx.array | None = None

    def _in_order(self, x: mx.array) -> mx.array:
        """x, after what was gathered or summed before: graphs differ a little from rank to rank, and MLX's order with
        them."""
        return x if self._last is None else mx.depends([x], [self._last])[0]

    @classmethod
    def launched(cls) -> Ranks | None:
        """Those that ``mlx.launch`` or ``mpirun`` has started; None where this process is alone.

        Raises: RankError when they cannot be reached.
        """
        meeting = begin()
        if meeting is None:
            return None
        meeting.connecting()
        before = connections()
        try:
            group = mx.distributed.init()
        except RuntimeError as error:
            raise RankError(f"mx.distributed: expected to reach the other ranks, found {error}") from error
        meeting.connected()
        return cls(group, connections() - before) if group.size() > 1 else None

    def sum(self, x: mx.array) -> mx.array:
        """The sum of every rank's x, the same bits on all of them."""
        self._last = mx.distributed.all_sum(self._in_order(x), group=self._group)
        return self._last

    def columns(self, x: mx.array, counts: Sequence[int]) -> mx.array:
        """Every rank's x [.., counts[rank]], side by side: [.., sum(counts)]."""
        missing = max(counts) - x.shape[-1]
        padded = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
        parts = self.gather(padded)
        return mx.concatenate([parts[r, ..., :count] for r, count in enumerate(counts)], axis=-1)

    def gather(self, x: mx.array) -> mx.array:
        """Every rank's x: [size, *shape]."""
        self._last = mx.distributed.all_gather(self._in_order(x)[None], group=self._group)
        return self._last

    def from_first(self, data: bytes, size: int) -> bytes:
        """``data`` of rank 0, ``size`` bytes, which all know."""
        mine = mx.array(np.frombuffer(data, np.uint8)) if self.rank == 0 else mx.zeros(size, mx.uint8)
        return np.array(self.sum(mine)).tobytes()

    def numbers(self, number: int) -> list[int]:
        """Every rank's number, 0 <= number < 2**62."""
        halves = mx.array([number >> 31, number & (2**31 - 1)], dtype=mx.int32)
        found = np.array(self.gather(halves)).astype(np.int64)
        return [int(each) for each in (found[:, 0] << 31) + found[:, 1]]

    def seed(self, seed: int | None) -> int:
        """The seed that was given, or a fresh one, the same on all ranks."""
        return self.numbers(secrets.randbits(32))[0] if seed is None else seed

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raises: RankError naming the first fact that is another on another rank."""
        for name, value in facts.items():
            digest = hashlib.sha256(value.encode()).digest()
            found = self.numbers(int.from_bytes(digest[:7], "big"))
            different = [rank for rank, each in enumerate(found) if each != found[0]]
            if different:
                raise RankError(
                    f"{name}: expected the same on all {self.size} ranks, found another on {different} than on rank 0 "
                    f"(here, on rank {self.rank}: {value:.80})"
                )
