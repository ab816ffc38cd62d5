"""What a conversion made, in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_delta.checkpoint.safetensors import file_size
from mlx_delta.conversion.awq import FoldGain
from mlx_delta.conversion.recipe import TensorPlan


@dataclass(frozen=True)
class ComponentSummary:
    """One row of the closing table."""

    component: str
    bits: str  # "3", or the dtype of what is kept
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion made. ``bits_per_weight`` counts the text model, scales and biases included."""

    path: Path
    tensors: int
    bytes_written: int
    bytes_predicted: int
    bits_per_weight: float
    components: tuple[ComponentSummary, ...]
    folds: tuple[FoldGain, ...]
    warnings: tuple[str, ...]


def report(
    out: Path,
    plans: Sequence[TensorPlan],
    labels: Sequence[str],
    written: int,
    folds: Sequence[FoldGain],
    warnings: tuple[str, ...],
) -> ConvertReport:
    entries = [entry for each in plans for entry in each.entries]
    return ConvertReport(
        path=out,
        tensors=len(entries),
        bytes_written=written,
        bytes_predicted=file_size(entries),
        bits_per_weight=_bits_per_weight(plans),
        components=_summary(plans, labels),
        folds=tuple(folds),
        warnings=warnings,
    )


def _bits_per_weight(plans: Sequence[TensorPlan]) -> float:
    text = [p for p in plans if p.component not in ("vision", "mtp")]
    return 8 * sum(p.nbytes for p in text) / sum(math.prod(p.shape) for p in text)


def _summary(plans: Sequence[TensorPlan], labels: Sequence[str]) -> tuple[ComponentSummary, ...]:
    rows: dict[tuple[int, str], list[TensorPlan]] = {}
    for each in plans:
        rows.setdefault((labels.index(each.component), each.width_label), []).append(each)
    return tuple(
        ComponentSummary(labels[index], bits, sum(len(p.entries) for p in row), sum(p.nbytes for p in row))
        for (index, bits), row in sorted(rows.items())
    )
