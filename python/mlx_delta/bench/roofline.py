"""The roofline: operations a second against operations a byte, under what memory and arithmetic allow.

A point below the slope is what an op loses to the memory it has to read; Williams, Waterman and Patterson (2009).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_delta import _core
from mlx_delta.evaluation import require_plotting


@dataclass(frozen=True)
class Point:
    """flops: operations, nbytes: bytes to move, seconds: that took."""

    label: str
    flops: float
    nbytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        return self.flops / self.nbytes

    @property
    def speed(self) -> float:
        return self.flops / self.seconds


_MARKERS = {"": "o", "8": "s"}


def multiply_add_flops(repeats: int = 5) -> float:
    """Operations a second of float32 multiply-adds in registers, on all threads, the best of ``repeats``."""
    _core.multiply_add(1000)
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        operations = _core.multiply_add(1_000_000)
        speeds.append(operations / (time.perf_counter() - start))
    return max(speeds)


def save_roofline(points: Sequence[Point], bandwidth: float, file: Path, title: str) -> None:
    """Draw ``points`` under ``bandwidth`` (bytes a second, measured) and float32 multiply-adds, as a PNG at ``file``.

    One colour a matrix; the marker tells rows: circles one, squares eight ("-m8"), triangles a prompt's ("-m512").
    Raises: ValueError when matplotlib is not there.
    """
    require_plotting()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    arithmetic = multiply_add_flops()
    knee = arithmetic / bandwidth
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    low = min([0.5, *(point.intensity for point in points)]) / 2
    high = max([knee, *(point.intensity for point in points)]) * 4
    axes.plot([low, knee], [low * bandwidth / 1e9, arithmetic / 1e9], "k-", label=f"read {bandwidth / 1e9:.1f} GB/s")
    label = f"float32 multiply-adds {arithmetic / 1e9:.0f} GFLOP/s"
    axes.plot([knee, high], [arithmetic / 1e9] * 2, "k--", label=label)
    colors: dict[str, str] = {}
    for point in points:
        stem, _, rows = point.label.partition("-m")
        color = colors.setdefault(stem, f"C{len(colors) % 10}")
        share = point.nbytes / point.seconds / bandwidth
        label = f"{point.label}  {100 * share:.0f} %" if point.intensity < knee else point.label
        axes.plot([point.intensity], [point.speed / 1e9], _MARKERS.get(rows, "^"), color=color, label=label)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte", ylabel="GFLOP/s",
        title=f"{title}; %: of the read bandwidth",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=150, format="png")
