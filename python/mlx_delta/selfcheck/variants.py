"""What qmm's plan could choose instead: rows of weights of a simdgroup, simdgroups of a threadgroup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import _core, ops
from mlx_delta.bench.cases.draws import quantized
from mlx_delta.errors import RedTests
from mlx_delta.selfcheck.speed import evaluated
from mlx_delta.selfcheck.way import Way

# plan() refuses fewer simdgroups than rows of x, here 4 at most.
_VARIANTS = [(rows, simdgroups) for rows in (2, 4, 8) for simdgroups in (4, 8)]
_PLANNED = (0, 0)


@contextmanager
def _chosen(variant: tuple[int, int]) -> Iterator[None]:
    _core.set_qmm_variant(*variant)
    try:
        yield
    finally:
        _core.set_qmm_variant(*_PLANNED)


def variants(way: Way) -> dict[str, Any]:
    """Each has the bits of the plan's own; on a GPU ms of each at the 9B's shapes, by bits, rows of x and N."""
    rng = np.random.default_rng(2)
    tried = _VARIANTS if way.name == "gpu" else [(2, 4), (8, 8)]
    widths = (2, 3, 4, 5, 6, 8) if way.name == "gpu" else (3,)
    for bits in widths:
        weight = quantized(rng, 72, 2048, bits)
        for M in (1, 4) if way.name == "gpu" else (3,):
            x = mx.array(rng.standard_normal((M, 2048)).astype(np.float32)).astype(mx.bfloat16)
            (planned,) = way.evaluate([ops.qmm(x, [weight])])
            for variant in tried:
                with _chosen(variant):
                    (found,) = way.evaluate([ops.qmm(x, [weight])])
                if not mx.array_equal(found, planned):
                    case = f"qmm {bits} bits, {M} rows, variant {variant}"
                    raise RedTests(f"{case}: expected the plan's bits, found others")
    return {"same bits": [list(one) for one in tried], "ms": _times(rng) if way.name == "gpu" else {}}


def _times(rng: np.random.Generator, K: int = 4096) -> dict[str, dict[str, float]]:
    """ms of one product, of sets of weights that no cache holds."""
    found: dict[str, dict[str, float]] = {}
    for bits in (3, 4, 6):
        for N in (4096, 12288):
            count = max(2, (1 << 28) // (N * K * bits // 8))
            sets = [quantized(rng, N, K, bits) for _ in range(count)]
            mx.eval([a for one in sets for a in (one.weight, one.scales, one.biases)])
            for M in (1, 4):
                x = mx.ones((M, K), mx.bfloat16)
                row = found[f"{bits} bits, {M} rows, N = {N}"] = {}
                for variant in (_PLANNED, *_VARIANTS):
                    with _chosen(variant):
                        seconds = evaluated(lambda one, x=x: ops.qmm(x, [one]), sets)  # type: ignore[misc]
                    row["planned" if variant == _PLANNED else f"{variant[0]} x {variant[1]}"] = round(
                        1e3 * seconds / count, 4
                    )
    return found
