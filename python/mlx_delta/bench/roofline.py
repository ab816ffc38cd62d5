"""The roofline: operations a second against operations a byte, under what memory and arithmetic allow.

A point below the slope is what an op loses to the memory it has to read; Williams, Waterman and Patterson (2009).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_delta.evaluate import require_plotting


@dataclass(frozen=True)
class Point:
    """flops: operations, nbytes: bytes to move, seconds: that took."""

    label: str
    flops: float
    nbytes: float
    seconds: float


def matmul_flops(size: int = 2048, repeats: int = 3) -> float:
    """Operations a second of numpy's float32 matrix product, the best of ``repeats``: the arithmetic roof to plot."""
    a = np.ones((size, size), np.float32)
    a @ a
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def save_roofline(points: Sequence[Point], bandwidth: float, file: Path, title: str) -> None:
    """Draw ``points`` under ``bandwidth`` (bytes a second, measured) and numpy's matrix product, as a PNG at ``file``.

    Raises: ValueError when matplotlib is not there.
    """
    require_plotting()
    from matplotlib.figure import Figure

    arithmetic = matmul_flops()
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [point.flops / point.nbytes for point in points]
    low, high = min([0.5, *intensities]) / 2, max([arithmetic / bandwidth, *intensities]) * 4
    knee = arithmetic / bandwidth
    axes.plot([low, knee], [low * bandwidth / 1e9, arithmetic / 1e9], "k-", label=f"read {bandwidth / 1e9:.1f} GB/s")
    label = f"numpy's float32 matmul {arithmetic / 1e9:.0f} GFLOP/s"
    axes.plot([knee, high], [arithmetic / 1e9] * 2, "k--", label=label)
    for index, (point, intensity) in enumerate(zip(points, intensities, strict=True)):
        share = point.nbytes / point.seconds / bandwidth
        marker = "osD^vP*X"[index // 10 % 8]  # ten colours, then the next marker
        name = f"{point.label}  {100 * share:.0f} %" if intensity < knee else point.label
        axes.plot([intensity], [point.flops / point.seconds / 1e9], marker, label=name)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte", ylabel="GFLOP/s",
        title=f"{title}; %: of the read bandwidth",
    )  # fmt: skip
    axes.grid(which="major", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=150, format="png")
