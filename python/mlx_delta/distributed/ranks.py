"""The processes that run a model together."""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from mlx_delta.distributed.meeting import PROGRAMS, Meeting, begin, launched
from mlx_delta.errors import RankError


class Ranks:
    """A group of at least two processes, as one of them sees it. rank: this one's, from 0. size: how many there are.
    by_layers: whether each is to have whole layers, one after another, instead of a part of every layer."""

    def __init__(self, group: mx.distributed.Group, by_layers: bool = False, meeting: Meeting | None = None) -> None:
        self.by_layers = by_layers
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._meeting = meeting
        self._calls = 0
        self.restart()

    def restart(self) -> None:
        """What was built and is not to be computed is forgotten."""
        self._last: mx.array | None = None

    def _in_order(self, x: mx.array) -> mx.array:
        """x, after what was gathered or summed before: graphs differ a little from rank to rank, and MLX's order with
        them."""
        return x if self._last is None else mx.depends([x], [self._last])[0]

    def _call(self) -> int:
        """A number that goes with what is gathered, and tells it from what lay there before: where a connection is
        lost, MLX's ring computes on without a word (0.32.4), with whatever is in the places of the others."""
        self._calls = (self._calls + 1) % 128  # exact in bfloat16
        return self._calls

    @classmethod
    def launched(cls, by_layers: bool = False) -> Ranks | None:
        """Those that ``mlx.launch`` or ``mpirun`` has started; None where this process is alone.

        Raises: RankError when they cannot be reached; ArgumentError for a wrong MLX_DELTA_START_WITHIN.
        """
        if not launched():
            return None
        meeting = begin(PROGRAMS)
        if meeting is not None:
            meeting.connecting()
        try:
            group = mx.distributed.init()
        except RuntimeError as error:
            raise RankError(f"mx.distributed: expected to reach the other ranks, found {error}") from error
        if meeting is not None:
            meeting.connected()
        return cls(group, by_layers, meeting) if group.size() > 1 else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block whose process ends, with a line on stderr and exit code 1, soon after another rank is lost."""
        if self._meeting is None:
            yield
            return
        with self._meeting.watched():
            yield

    def sum(self, x: mx.array) -> mx.array:
        """The sum of every rank's x, the same bits on all of them."""
        self._last = mx.distributed.all_sum(self._in_order(x), group=self._group)
        return self._last

    def columns(self, x: mx.array, counts: Sequence[int]) -> mx.array:
        """Every rank's x [.., counts[rank]], side by side: [.., sum(counts)]; NaN where a connection was lost."""
        call = self._call()
        padded = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(counts) + 1 - x.shape[-1])], constant_values=call)
        parts = self.gather(padded)
        came = mx.all(parts[..., -1:] == call, axis=0)
        found = mx.concatenate([parts[r, ..., :count] for r, count in enumerate(counts)], axis=-1)
        return mx.where(came, found, mx.array(mx.nan, x.dtype))

    def gather(self, x: mx.array) -> mx.array:
        """Every rank's x: [size, *shape]."""
        self._last = mx.distributed.all_gather(self._in_order(x)[None], group=self._group)
        return self._last

    def from_first(self, data: bytes, size: int) -> bytes:
        """``data`` of rank 0, ``size`` bytes, which all know. Raises: RankError where a connection was lost."""
        sent = data + zlib.crc32(data).to_bytes(4, "big") if self.rank == 0 else bytes(size + 4)
        found = np.array(self.sum(mx.array(np.frombuffer(sent, np.uint8)))).tobytes()
        if zlib.crc32(found[:-4]).to_bytes(4, "big") != found[-4:]:
            raise RankError(self._lost())
        return found[:-4]

    def numbers(self, number: int) -> list[int]:
        """Every rank's number, 0 <= number < 2**62. Raises: RankError where a connection was lost."""
        found = self.exchange((number >> 31, number & (2**31 - 1)))()
        return [int(each) for each in (found[:, 0] << 31) + found[:, 1]]

    def exchange(self, mine: Sequence[int]) -> Callable[[], np.ndarray]:
        """Every rank's numbers, 0 <= number < 2**31, [size, len(mine)]: set off now, and waited for in a call of what
        is returned. That raises RankError where a connection was lost."""
        call = self._call()
        gathered = self.gather(mx.array([*mine, call], dtype=mx.int32))
        mx.async_eval(gathered)

        def found() -> np.ndarray:
            rows = np.array(gathered).astype(np.int64)
            if (rows[:, -1] != call).any():
                raise RankError(self._lost())
            return rows[:, :-1]

        return found

    def _lost(self) -> str:
        return f"rank {self.rank} of {self.size}: expected all ranks to go on, found a connection lost"

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
