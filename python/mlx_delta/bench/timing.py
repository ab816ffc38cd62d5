"""Times and bandwidths that hold on a machine which others use too: medians of interleaved runs, ratios in one run."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from mlx_delta import _core

T = TypeVar("T")
_CPUS = Path("/sys/devices/system/cpu")
_UNKNOWN_CACHE = 48 << 20  # where the system does not say: as much as the system level cache of a large Apple chip
_READS = 8  # of one evaluation on a GPU


@dataclass(frozen=True)
class Time:
    """Seconds: the median and the median absolute deviation of the runs."""

    median: float
    mad: float
    runs: int

    @classmethod
    def of(cls, times: list[float]) -> Time:
        median = statistics.median(times)
        return cls(median, statistics.median(abs(t - median) for t in times), len(times))


def measure(prepare: Callable[[], T], run: Callable[[T], object], repeats: int) -> Time:
    """Time ``run``, on what ``prepare`` makes untimed before each, after one warm-up."""
    run(prepare())
    times = []
    for _ in range(repeats):
        given = prepare()
        start = time.perf_counter()
        run(given)
        times.append(time.perf_counter() - start)
    return Time.of(times)


def last_level_cache() -> int:
    """Bytes of the largest level of cache, of all sockets and core complexes together."""
    found: dict[tuple[int, str], int] = {}
    for index in _CPUS.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            size = re.fullmatch(r"(\d+)K", (index / "size").read_text().strip())
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if size is not None:
            found[level, shared] = int(size[1]) << 10
    top = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == top) or _UNKNOWN_CACHE


def working_set() -> int:
    """Bytes that no cache holds: over 4 times the last-level cache."""
    return max(192 << 20, 5 * last_level_cache())


class ReadBandwidth:
    """A plain read of a working set that no cache holds, sampled through the whole run.

    On a CPU on all threads; on a GPU by MLX's reduction, several in one evaluation, for one is as short as its start.
    """

    def __init__(self) -> None:
        self._data = mx.zeros(working_set() // 4, mx.float32) + 1
        self._on_gpu = mx.default_device().type == mx.DeviceType.gpu
        mx.eval(self._data)
        _core.use_huge_pages(self._data)
        self._read()
        self._samples: list[float] = []

    @property
    def nbytes(self) -> int:
        """The working set."""
        return self._data.nbytes

    def sample(self) -> None:
        """The best of three reads: one of a few milliseconds is easily disturbed, and a floor must not be too low."""
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            nbytes = self._read()
            rates.append(nbytes / (time.perf_counter() - start))
        self._samples.append(max(rates))

    def _read(self) -> int:
        """How many bytes."""
        if not self._on_gpu:
            _core.read_all(self._data)
            return self._data.nbytes
        mx.eval([mx.max(self._data) for _ in range(_READS)])
        return _READS * self._data.nbytes

    def median(self, since: int = 0) -> float:
        """Bytes a second: the median of the samples from number ``since`` on."""
        return statistics.median(self._samples[since:])

    def __len__(self) -> int:
        return len(self._samples)
