"""Every Metal kernel that the cases need, as the Launch that plans it: what there is to compile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.bench.cases import CASES, DTYPES, Case
from mlx_delta.bench.cases.draws import Zeros


@dataclass(frozen=True)
class Use:
    """The first case, and its dtype, that a specialisation is needed for."""

    case: Case
    dtype: mx.Dtype
    launch: _core.Launch


@cache
def specialisations() -> dict[str, Use]:
    """By the kernel's name. The 9B's cases in bfloat16 only, as it runs."""
    found: dict[str, Use] = {}
    for case, dtype in uses():
        try:
            plan, _ = _core.plan(case.run(case.make(dtype, Zeros()))[0])
        except ValueError:  # no kernel for it: tests/ops_metal says which cases those are
            continue
        for launch in plan.launches:
            found.setdefault(launch.kernel, Use(case, dtype, launch))
    return found


def uses() -> Iterable[tuple[Case, mx.Dtype]]:
    real = [(case, mx.bfloat16) for case in CASES if case.real]
    return real + [(case, dtype) for dtype in reversed(DTYPES.values()) for case in CASES if not case.real]
