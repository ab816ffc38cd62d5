"""Every Metal kernel, by the Launch that the op's plan gives, against the op's float32 reference.

The launches run on a CPU (tests/msl), so a Mac is not needed. The same cases as on the CPU's own kernels.
"""

from __future__ import annotations

import re
from collections import Counter

import mlx.core as mx
import pytest
from emulate import LARGE, emulate, library, run_plan

from mlx_delta import _core, ops
from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, Case, relative_rms


def has_kernel(case: Case) -> bool:
    """qmm of more rows is a composition of MLX's own operations on a GPU; head dims must be multiples of 32."""
    if case.op == "qmm":
        return case.arguments(mx.float32)["x"].shape[0] <= 16
    return case not in ODD_HEADS


ODD_HEADS = [c for c in CASES if c.op in ("attention", "gated_delta", "delta_mixer") and re.search("d(36|72)", c.name)]
SMALL = [case for case in CASES if not case.real and has_kernel(case)]
ids = {"argnames": "case", "argvalues": SMALL, "ids": [case.id for case in SMALL]}


def same(found: list[mx.array], expected: list[mx.array]) -> bool:
    return all(mx.array_equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize(**ids)
def test_matches_the_reference(case: Case, dtype: mx.Dtype) -> None:
    found, expected = emulate(case, dtype), case.reference(case.arguments(dtype))
    assert len(found) == len(expected)
    for result, reference in zip(found, expected, strict=True):
        assert result.shape == reference.shape
        assert relative_rms(result, reference) <= BOUNDS[dtype]


@pytest.mark.parametrize(**ids)
def test_no_race_no_stray_access_no_divergence(case: Case) -> None:
    """The checker raises for what it finds; it also counts a read of what nobody wrote."""
    emulate(case, mx.bfloat16, check=True)


@pytest.mark.parametrize(**ids)
def test_results_do_not_depend_on_the_order_of_threads(case: Case) -> None:
    assert same(emulate(case, mx.bfloat16, order="reverse"), emulate(case, mx.bfloat16))


@pytest.mark.parametrize(**ids)
def test_half_types_may_be_computed_with_excess_precision(case: Case) -> None:
    """Everything is float between load and store, so there is nothing that excess precision could change."""
    assert same(emulate(case, mx.bfloat16, excess_precision=True), emulate(case, mx.bfloat16))


def one_of_each_kernel() -> list[Case]:
    """The first case of each kernel and set of flags; widths and dtypes of qmm are all in its `mixed` cases."""
    seen: dict[str, Case] = {}
    for case in SMALL:
        for launch in _core.plan(case.run(case.arguments(mx.bfloat16))[0])[0].launches:
            seen.setdefault(launch.kernel, case)
    return list(dict.fromkeys(seen.values()))


@pytest.mark.parametrize("case", one_of_each_kernel(), ids=lambda case: case.id)
def test_compiles_without_a_warning(case: Case) -> None:
    for launch in _core.plan(case.run(case.arguments(mx.bfloat16))[0])[0].launches:
        assert launch.source.isascii()
        assert library(launch.source).strict_compile(launch.kernel) == []


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_qmm_rows_are_identical_whatever_the_batch(bits: int) -> None:
    case = next(c for c in CASES if c.id == f"qmm-b{bits}g64")
    arguments = case.arguments(mx.bfloat16)
    x = mx.random.normal((16, arguments["x"].shape[1]), key=mx.random.key(bits)).astype(mx.bfloat16)
    norm = mx.ones(x.shape[1])
    together = run_plan([ops.qmm(x, arguments["segments"], norm=norm)])[0][0]
    for M in (1, 2, 3, 7):
        part = run_plan([ops.qmm(x[:M], arguments["segments"], norm=norm)])[0][0]
        assert mx.array_equal(part, together[:M])


def test_an_embedding_of_an_unknown_token_is_nan() -> None:
    rows = run_plan([ops.embedding(mx.array([1, 4, -1]), ops.Matrix.plain(mx.ones((4, 8))), mx.float32)])[0][0]
    assert mx.all(mx.isnan(rows), axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize("case", ODD_HEADS, ids=lambda case: case.id)
def test_head_dims_that_lanes_cannot_share_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=f"{case.op}: head dim: expected a multiple of 32 up to 256.*found (36|72)"):
        _core.plan(case.run(case.arguments(mx.bfloat16))[0])


def test_attention_over_a_long_context_is_split() -> None:
    case = next(c for c in CASES if c.op == "attention" and c.real)
    arguments = case.arguments(mx.bfloat16)
    found, plan = run_plan(case.run(arguments))
    assert [launch.kernel.split("_b")[0] for launch in plan.launches] == ["attention", "attention_combine"]
    assert relative_rms(found[0], case.reference(arguments)[0]) <= BOUNDS[mx.bfloat16]


# lm_head is gate_up with other numbers: 248320 rows would take the emulator a minute.
DECODE = [c for c in CASES if c.real and c.name not in ("9b-lm_head", "9b-gate_up-m8")]


@pytest.mark.parametrize("case", DECODE, ids=lambda case: case.id)
def test_moves_hardly_more_bytes_than_it_must(case: Case) -> None:
    """Each byte counted once, the kernels touch what the op has to move and 3 % at most above; so do their reads of
    weights, states and the KV cache with each access counted, for those would come from memory again."""
    arguments = case.arguments(mx.bfloat16)
    results = case.run(arguments)
    plan, inputs = _core.plan(results[0])
    traffic: Counter[str] = Counter()
    found = run_plan(results, count_bytes=True, traffic=traffic)[0]
    for result, expected in zip(found, results, strict=True):  # the CPU's kernels, held to the reference by tests/ops
        assert relative_rms(result, expected) <= BOUNDS[mx.bfloat16]
    least = case.bytes(arguments, results)
    assert traffic["unique"] <= 1.03 * least
    assert traffic["large"] <= 1.03 * sum(i.nbytes for i in inputs if i.nbytes >= LARGE)
    assert plan.launches
