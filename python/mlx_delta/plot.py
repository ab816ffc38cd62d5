"""The plots: models against their reference, ops under the roofline. They need matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_delta.checkpoint.atomic import atomic_file
from mlx_delta.errors import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlx_delta.bench.roofline import Point
    from mlx_delta.evaluation import Evaluation

_MARKERS = {"": "o", "8": "s"}  # by rows of x


def check_plot(file: Path | None) -> None:
    """Before a long run is wasted: a plot can be drawn to ``file``. Raises: MissingPackageError, ArgumentError."""
    if file is None:
        return
    if find_spec("matplotlib") is None:
        raise MissingPackageError("a plot: expected matplotlib, found it missing: pip install 'mlx-delta[plot]'")
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise ArgumentError(f"plot: expected a file in a directory that exists, found {file}")


def save_evaluations(results: Sequence[Evaluation], file: Path) -> None:
    """Mean KLD (logarithmic, and 0) against the text model's size, a labelled point a model, as a PNG at ``file``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    middle = (min(each.nbytes for each in results) + max(each.nbytes for each in results)) / 2
    for each in results:
        axes.scatter(each.nbytes / 1e6, each.kld_mean, clip_on=False)
        side, offset = ("right", -5) if each.nbytes > middle else ("left", 5)  # so that names stay in the frame
        place = (each.nbytes / 1e6, each.kld_mean)
        axes.annotate(Path(each.model).name, place, xytext=(offset, 5), textcoords="offset points", ha=side)
    axes.set(xlabel="text model, MB", ylabel="mean KL divergence from the reference, nats")
    positive = [each.kld_mean for each in results if each.kld_mean > 0] or [1e-6]
    axes.set_yscale("symlog", linthresh=min(positive))  # logarithmic, with a place for the reference itself, at 0
    axes.set_ylim(bottom=0, top=2 * max(positive))  # room for the highest label
    axes.margins(x=0.1)
    _save(figure, file)


def save_roofline(points: Sequence[Point], bandwidth: float, file: Path, title: str) -> None:
    """Draw ``points`` under ``bandwidth`` (bytes a second, measured) and float32 multiply-adds, as a PNG at ``file``.

    One colour a matrix; the marker tells rows: circles one, squares eight ("-m8"), triangles a prompt's ("-m512").
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    from mlx_delta.bench.roofline import multiply_add_flops

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
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    with atomic_file(file, force=True) as partial:
        figure.savefig(partial, dpi=150, format="png")
