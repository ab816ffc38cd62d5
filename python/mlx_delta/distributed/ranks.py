"""The processes that run a model together."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence, Set

import mlx.core as mx
import numpy as np

from mlx_delta.distributed.watch import connections
from mlx_delta.errors import RankError

# What mlx.launch sets for its backends (ring, jaccl, nccl), and what MPI's programs set.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launched() -> bool:
    """Whether a launcher has started this process as one of several, or of one."""
    return any(name in os.environ for name in _LAUNCHED)


class Ranks:
    """A group of at least two processes, as one of them sees it. rank: this one's, from 0. size: how many there are."""

    def __init__(self, group: mx.distributed.Group, connections: Set[int] = frozenset()) -> None:
        self.rank, self.size = group.rank(), group.size()
        self.connections = connections  # to other ranks, as file descriptors
        self._group = group

    @classmethod
    def launched(cls) -> Ranks | None:
        """Those that ``mlx.launch`` or ``mpirun`` has started; None where this process is alone.

        Raises: RankError when they cannot be reached.
        """
        if not launched():
            return None
        before = connections()
        try:
            group = mx.distributed.init()
        except RuntimeError as error:
            raise RankError(f"mx.distributed: expected to reach the other ranks, found {error}") from error
        return cls(group, connections() - before) if group.size() > 1 else None

    def sum(self, x: mx.array) -> mx.array:
        """The sum of every rank's x, the same bits on all of them."""
        return mx.distributed.all_sum(x, group=self._group)

    def columns(self, x: mx.array, counts: Sequence[int]) -> mx.array:
        """Every rank's x [.., counts[rank]], side by side: [.., sum(counts)]."""
        missing = max(counts) - x.shape[-1]
        padded = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
        parts = mx.distributed.all_gather(padded[None], group=self._group)
        return mx.concatenate([parts[r, ..., :count] for r, count in enumerate(counts)], axis=-1)

    def numbers(self, number: int) -> list[int]:
        """Every rank's number, 0 <= number < 2**62."""
        halves = mx.array([[number >> 31, number & (2**31 - 1)]], dtype=mx.int32)
        found = np.array(mx.distributed.all_gather(halves, group=self._group)).astype(np.int64)
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
