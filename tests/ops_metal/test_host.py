"""The host's side of the Metal kernels: names, sources, and what prefill is made of where MLX's kernels do the work."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest

from mlx_delta import _core
from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, Case, relative_rms
from support.devices import ODD_HEADS, has_metal_kernel

ROWS = _core.DECODE_TOKENS
# More rows or tokens than our kernels take.
PRODUCTS = [c for c in CASES if c.op in ("qmm", "route", "experts")]
WIDE = [c for c in PRODUCTS if (x := c.arguments(mx.float32)["x"]).size > ROWS * x.shape[-1]]
WIDE_QMM = [c for c in WIDE if c.op == "qmm"]
WIDE_ATTENTION = [c for c in CASES if c.op == "attention" and c.arguments(mx.float32)["q"].shape[2] > ROWS]

# MLX's quantized_matmul on a CPU, where these tests run, adds up in bfloat16; its Metal kernels add up in float32.
SUMS = {**BOUNDS, mx.bfloat16: 3e-2}
# From some hundred columns on that is too coarse to tell a wrong result: those run in the other dtypes alone.
MANY_ROWS = [
    pytest.param(case, dtype, id=f"{case.id}-{name}")
    for case in WIDE_QMM
    for name, dtype in DTYPES.items()
    if dtype != mx.bfloat16 or case.arguments(dtype)["x"].shape[-1] <= 600
]


@pytest.mark.parametrize(("case", "dtype"), MANY_ROWS)
def test_many_rows_of_qmm_through_mlx(case: Case, dtype: mx.Dtype) -> None:
    arguments = case.arguments(dtype)
    found = _core.qmm_mlx(**arguments)
    assert found.dtype == dtype
    assert relative_rms(found, case.reference(arguments)[0]) <= SUMS[dtype]


@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_segments_residual_and_swiglu_through_mlx(dtype: mx.Dtype, activation: str | None) -> None:
    """The cases of mixed widths and of fused epilogues, with more rows than those have."""
    case = next(c for c in CASES if c.id == ("qmm-swiglu" if activation else "qmm-mixed"))
    arguments = case.arguments(dtype)
    arguments["x"] = mx.random.normal((40, arguments["x"].shape[1]), key=mx.random.key(1)).astype(dtype)
    N = 61 if activation else 136
    arguments["residual"] = mx.random.normal((40, N), key=mx.random.key(2)).astype(dtype)
    found = _core.qmm_mlx(**arguments)
    assert relative_rms(found, case.reference(arguments)[0]) <= SUMS[dtype]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", WIDE_ATTENTION, ids=lambda case: case.id)
def test_many_tokens_of_attention_through_mlx(case: Case, dtype: mx.Dtype) -> None:
    """MLX rounds scores and probabilities to the dtype too."""
    arguments = case.arguments(dtype)
    found = _core.attention_mlx(**arguments)
    assert found.shape == case.run(arguments)[0].shape
    assert relative_rms(found, case.reference(arguments)[0]) <= 2 * BOUNDS[dtype]


def test_a_kernel_s_name_belongs_to_one_text() -> None:
    """Compiled kernels are kept by name alone."""
    texts: dict[str, str] = {}
    for case in CASES:
        if case.real or not has_metal_kernel(case.op) or case in WIDE:
            continue
        if case in ODD_HEADS:
            continue
        for launch in _core.plan(case.run(case.arguments(mx.bfloat16))[0])[0].launches:
            assert re.fullmatch(r"[A-Za-z]\w+", launch.kernel)
            assert texts.setdefault(launch.kernel, launch.source) == launch.source
    assert len(texts) > 40
