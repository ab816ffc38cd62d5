"""What stands between a wrong kernel and a good time: a case is checked against its reference before it is timed."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx

from mlx_delta.bench.cases import BOUNDS, CASES, Arguments, Case, relative_rms
from mlx_delta.errors import RedTests


def relative_error(case: Case, arguments: Arguments) -> float:
    """The largest relative rms error of the case's results; NaN if anything is NaN."""
    errors = [relative_rms(f, e) for f, e in case.compare(arguments)]
    return max(errors, key=lambda error: (error != error, error))


def check(case: Case, arguments: Arguments, dtype: mx.Dtype = mx.bfloat16) -> float:
    """The relative error. Raises: RedTests naming the case when it is over the bound of ``dtype``."""
    error = relative_error(case, arguments)
    if not error <= BOUNDS[dtype]:
        raise RedTests(f"{case.id}: expected a relative error of at most {BOUNDS[dtype]:.0e}, found {error:.1e}")
    return error


def check_ops(cases: Iterable[Case] = CASES) -> int:
    """Check every small case in float32 and bfloat16, some two seconds; how many. Raises: RedTests naming the first."""
    small = [case for case in cases if not case.real]
    for case in small:
        for dtype in (mx.float32, mx.bfloat16):
            check(case, case.arguments(dtype), dtype)
    return len(small)
