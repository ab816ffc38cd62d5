"""Times and bandwidths that hold on a machine which others use too: medians of interleaved runs, ratios in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta import _core

WORKING_SET = 192 << 20  # bytes: over 4 times the last-level cache of what we run on (32 MB)


@dataclass(frozen=True)
class Time:
    """Seconds: the median and the median absolute deviation of the runs."""

    median: float
    mad: float
    runs: int


def measure(run: Callable[[], object], repeats: int, between: Callable[[], object] | None = None) -> Time:
    """Time ``run`` after one warm-up; ``between`` is called, untimed, before each."""
    run()
    times = []
    for _ in range(repeats):
        if between is not None:
            between()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return Time(median, statistics.median(abs(t - median) for t in times), len(times))


class ReadBandwidth:
    """A plain read of a working set that no cache holds, on all threads, sampled through the whole run."""

    def __init__(self) -> None:
        self._data = mx.zeros(WORKING_SET // 4, mx.float32) + 1
        mx.eval(self._data)
        _core.use_huge_pages(self._data)
        _core.read_all(self._data)
        self._samples: list[float] = []

    def sample(self) -> None:
        start = time.perf_counter()
        _core.read_all(self._data)
        self._samples.append(self._data.nbytes / (time.perf_counter() - start))

    def median(self, since: int = 0) -> float:
        """Bytes a second: the median of the samples from number ``since`` on."""
        return statistics.median(self._samples[since:])

    def __len__(self) -> int:
        return len(self._samples)
