"""What ``mlx-delta bench`` shows of its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mlx_delta.bench.kernels import Row, Summary
    from mlx_delta.bench.roofline import Point
    from mlx_delta.bench.whole_model import Decode, Prefill


def line(row: Row) -> str:
    speed = "" if row.flops is None else f"{row.flops / row.ms / 1e6:.0f}"
    return (
        f"{row.case:42}{row.bits:>8}{row.bytes / 1e6:9.3f}{row.ms:10.4f}{row.mad:8.4f}{speed:>9}{row.gbs:8.1f}"
        f"{row.read_gbs:7.1f}{100 * row.share:6.0f}"
    )


def summary_line(summary: Summary) -> str:
    mean, least = 100 * summary.share_mean, 100 * summary.share_least
    line = f"matrices, one row: {mean:.0f} % of the read bandwidth (least {least:.0f})"
    if summary.eight_rows_mean is None:
        return line
    return f"{line}; eight rows cost {summary.eight_rows_mean:.2f} times one (most {summary.eight_rows_most:.2f})"


def decode_lines(row: Decode, first: Decode) -> dict[str, str]:
    ratio = "" if row is first else f": {100 * row.tokens_per_second / first.tokens_per_second:.0f} % of the first"
    return {
        f"after {row.context}": f"{row.tokens_per_second:.2f} tok/s (MAD {row.tokens_per_second_mad:.2f}; {row.rounds} "
        f"rounds of {row.tokens} tokens){ratio}",
        "  read a token": f"{row.bytes_per_token:,} bytes of weights, {row.cache_bytes_per_token:,} of the cache",
        "  bandwidth": f"{row.bandwidth_share * row.read_bandwidth_gbs:.1f} GB/s of weights, "
        f"{100 * row.bandwidth_share:.0f} % of the {row.read_bandwidth_gbs:.1f} that this machine reads",
    }


def prefill_lines(row: Prefill) -> dict[str, str]:
    return {
        "prefill": f"{row.tokens_per_second:.1f} tok/s (MAD {row.tokens_per_second_mad:.1f}; {row.rounds} prompts of "
        f"{row.tokens} tokens after {row.context})",
        "read bandwidth": f"{row.read_bandwidth_gbs:.1f} GB/s",
    }


def memory(weights: int, arrays: int, resident: int | None) -> dict[str, str]:
    process = "" if resident is None else f"; the process {resident / 1e6:,.0f} MB"
    return {"peak memory": f"{arrays / 1e6:,.0f} MB of arrays, {weights / 1e6:,.0f} of them weights{process}"}


def loading(facts: dict[str, Any]) -> dict[str, str]:
    return {} if facts["load_seconds"] is None else {"loaded in": f"{facts['load_seconds']:.2f} s"}


def table(lines: dict[str, str]) -> None:
    for name, text in lines.items():
        typer.echo(f"{name:16}{text}")


def draw(plot: Path | None, points: list[Point], bandwidth: float, title: str) -> None:
    from mlx_delta.plot import save_roofline

    if plot is not None:
        save_roofline(points, bandwidth, plot, title)
