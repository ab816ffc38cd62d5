"""qmm where its kernel takes other paths: x longer than a tile, threadgroups not filled, few and many rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from emulate import run_plan

from mlx_delta import _core, ops
from mlx_delta.bench.cases import relative_rms
from mlx_delta.bench.cases.draws import normal, plain, quantized

LONG = 2 * 2048 + 64  # columns: two tiles of a staged x and the start of a third


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_rows_of_more_than_a_tile(bits: int) -> None:
    """One row of x is staged in threadgroup memory, three are not: their bits are the same, and right."""
    rng = np.random.default_rng(bits)
    segments = [quantized(rng, 5, LONG, bits, dtype=mx.float32), plain(rng, 3, LONG, mx.float32)]
    x, norm = normal(rng, 3, LONG), 1 + normal(rng, LONG, scale=0.1)
    together = run_plan([ops.qmm(x, segments, norm=norm)])[0][0]
    alone = run_plan([ops.qmm(x[:1], segments, norm=norm)], check=True)[0][0]
    assert mx.array_equal(alone, together[:1])
    assert relative_rms(together, ops.qmm_reference(x, segments, norm=norm)) <= 1e-5


@pytest.mark.parametrize("pair", ["alike", "mixed", "with a plain one"])
def test_gate_and_up_share_a_staged_row(pair: str) -> None:
    rng = np.random.default_rng(3)
    gate = quantized(rng, 21, LONG, 3, dtype=mx.float32)
    up = {
        "alike": lambda: quantized(rng, 21, LONG, 3, dtype=mx.float32),
        "mixed": lambda: quantized(rng, 21, LONG, 4, 32, dtype=mx.float32),
        "with a plain one": lambda: plain(rng, 21, LONG, mx.float32),
    }[pair]()
    for segments in ([gate, up], [up, gate]):
        x, norm = normal(rng, 2, LONG), 1 + normal(rng, LONG, scale=0.1)
        together = run_plan([ops.qmm(x, segments, norm=norm, activation="swiglu")])[0][0]
        alone = run_plan([ops.qmm(x[:1], segments, norm=norm, activation="swiglu")], check=True)[0][0]
        assert mx.array_equal(alone, together[:1])
        assert relative_rms(together, ops.qmm_reference(x, segments, norm=norm, activation="swiglu")) <= 1e-5


def test_many_rows_of_weights_get_larger_threadgroups() -> None:
    """9000 rows: four simdgroups share a staged x, and the last threadgroup has none for two of them."""
    rng = np.random.default_rng(4)
    x, segments = normal(rng, 1, 64), [quantized(rng, 9000, 64, 3, dtype=mx.float32)]
    result = ops.qmm(x, segments)
    found, plan = run_plan([result], check=True)
    assert plan.launches[0].threads == [128, 1, 1]
    assert relative_rms(found[0], ops.qmm_reference(x, segments)) <= 1e-5
    assert _core.plan(ops.qmm(x, [quantized(rng, 4096, 64, 3)]))[0].launches[0].threads == [64, 1, 1]
