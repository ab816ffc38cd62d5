"""qmm where its kernel takes other paths: x longer than a tile, threadgroups not filled, few and many rows."""

from __future__ import annotations

from collections.abc import Iterator

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
    """A tile of one row of x is not as long as one of three: their bits are the same, and right."""
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
    """17010 rows: eight simdgroups share a staged x, and the last threadgroup has rows for five of them."""
    rng = np.random.default_rng(4)
    x, segments = normal(rng, 1, 64), [quantized(rng, 17010, 64, 3, dtype=mx.float32)]
    found, plan = run_plan([ops.qmm(x, segments)], check=True)
    assert plan.launches[0].threads == [256, 1, 1]
    assert relative_rms(found[0], ops.qmm_reference(x, segments)) <= 1e-5
    assert _core.plan(ops.qmm(x, [quantized(rng, 9000, 64, 3)]))[0].launches[0].threads == [128, 1, 1]
    assert _core.plan(ops.qmm(x, [plain(rng, 4096, 64, mx.float32)]))[0].launches[0].threads == [64, 1, 1]


@pytest.mark.parametrize("M", [1, 3])
def test_a_vocabulary_s_rows_go_in_turns_with_x_staged_once(M: int) -> None:
    rng = np.random.default_rng(5)
    x, norm = normal(rng, M, 96), 1 + normal(rng, 96, scale=0.1)
    segments = [quantized(rng, 2 * 32768 + 70, 96, 4, 32, dtype=mx.float32)]
    found, plan = run_plan([ops.qmm(x, segments, norm=norm)], check=True)
    assert plan.launches[0].threadgroups == [1, -(-segments[0].rows // 64), 1]  # two turns of 32 rows each
    assert relative_rms(found[0], ops.qmm_reference(x, segments, norm=norm)) <= 1e-5


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_matrices_of_fewer_rows_than_a_simdgroup_takes(rows: int) -> None:
    rng = np.random.default_rng(6)
    x = normal(rng, 5, 64)
    segments = [quantized(rng, rows, 64, 5, dtype=mx.float32), quantized(rng, rows, 64, 5, dtype=mx.float32)]
    for activation in (None, "swiglu"):
        found, _ = run_plan([ops.qmm(x, segments, activation=activation)], check=True)
        assert relative_rms(found[0], ops.qmm_reference(x, segments, activation=activation)) <= 1e-5


def test_few_rows_of_a_large_launch_come_first() -> None:
    """Threadgroups that start last would be waited for: in the 9B's in_proj those of b and a."""
    rng = np.random.default_rng(7)
    segments = [quantized(rng, 96, 64, 5), quantized(rng, 64, 64, 5), plain(rng, 8, 64, mx.bfloat16)]
    launch = _core.plan(ops.qmm(normal(rng, 1, 64), segments))[0].launches[0]
    rows, first_threadgroup, first_column = np.frombuffer(launch.params, np.int32)[3:].reshape(3, 4)[:, :3].tolist()
    assert rows == [8, 64, 96]
    assert first_threadgroup == [0, 1, 5]
    assert first_column == [160, 96, 0]


def test_more_weights_than_an_index_counts_are_refused() -> None:
    huge = ops.Matrix.plain(mx.broadcast_to(mx.zeros((1, 1), mx.bfloat16), (1 << 16, 1 << 16)))
    with pytest.raises(
        ValueError, match=r"qmm: a matrix on a GPU: expected fewer than 2\^32 weights, found 65536 x 65536"
    ):
        _core.plan(ops.qmm(mx.zeros((1, 1 << 16), mx.bfloat16), [huge]))


@pytest.fixture
def as_planned() -> Iterator[None]:
    yield
    _core.set_qmm_variant(0, 0)


def test_a_variant_that_the_kernel_cannot_follow_is_refused(as_planned: None) -> None:
    rng = np.random.default_rng(8)
    x, packed, whole = normal(rng, 16, 64), quantized(rng, 64, 64, 3), plain(rng, 64, 64, mx.float32)
    _core.set_qmm_variant(0, 2)
    with pytest.raises(ValueError, match="qmm: a variant's simdgroups with 4 rows of x: expected at least 4, found 2"):
        _core.plan(ops.qmm(x, [packed]))
    found, plan = run_plan([ops.qmm(x[:2], [packed])], check=True)
    assert plan.launches[0].threads == [64, 1, 1]
    assert relative_rms(found[0], ops.qmm_reference(x[:2], [packed])) <= 1e-5
    _core.set_qmm_variant(8, 0)
    with pytest.raises(ValueError, match="qmm: a variant's rows with 8 rows of x: expected at most 4, found 8"):
        _core.plan(ops.qmm(x, [whole]))
    for rows, simdgroups, wrong in ((3, 0, "rows: .*found 3"), (0, 16, "simdgroups: .*found 16"), (-1, 0, "found -1")):
        with pytest.raises(ValueError, match=wrong):
            _core.set_qmm_variant(rows, simdgroups)
