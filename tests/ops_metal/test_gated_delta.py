"""Chunked gated_delta where numbers are hard: decays that end a memory within a token, and none; equal keys; padding
that holds NaN; head dims from 32 to 256. Against the reference, token by token."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from emulate import run_plan

from mlx_delta import ops
from mlx_delta.bench.cases import Arguments, relative_rms
from mlx_delta.bench.cases.draws import normal


def draw(T: int, Dk: int, Dv: int, *, Hk: int = 1, Hv: int = 2, B: int = 1) -> Arguments:
    rng = np.random.default_rng(T + Dk)
    return {
        "q": normal(rng, B, T, Hk, Dk),
        "k": normal(rng, B, T, Hk, Dk),
        "v": normal(rng, B, T, Hv, Dv),
        "a": normal(rng, B, T, Hv),
        "b": normal(rng, B, T, Hv),
        "A_log": normal(rng, Hv, scale=0.5),
        "dt_bias": normal(rng, Hv),
        "state": normal(rng, B, Hv, Dv, Dk, scale=0.2),
    }


def errors(arguments: Arguments) -> list[float]:
    found, plan = run_plan(list(ops.gated_delta(**arguments)), check=True)
    assert [launch.kernel.split("_f")[0] for launch in plan.launches] == ["gated_delta_wy", "gated_delta_chunks"]
    expected = ops.gated_delta_reference(**arguments)
    return [relative_rms(f, e) for f, e in zip(found, expected, strict=True)]


@pytest.mark.parametrize(("Dk", "Dv"), [(32, 32), (96, 64), (64, 160), (256, 32), (32, 256)])
def test_head_dims(Dk: int, Dv: int) -> None:
    assert max(errors(draw(67, Dk, Dv))) <= 1e-5


@pytest.mark.parametrize("A_log", [5.0, 2.0, -30.0], ids=["forgets at once", "forgets fast", "never forgets"])
def test_decays(A_log: float) -> None:
    """exp(5) softplus(1) is a decay of e^-190 a token: products of decays and of their inverses would overflow."""
    arguments = draw(130, 64, 32)
    arguments["A_log"] = mx.full((2,), A_log)
    assert max(errors(arguments)) <= 1e-5


def test_equal_keys_written_in_full() -> None:
    """The worst conditioned system: ones below the diagonal; a power series for its inverse would cancel."""
    arguments = draw(100, 64, 32)
    arguments["k"] = mx.broadcast_to(arguments["k"][:, :1], arguments["k"].shape)
    arguments["b"] = mx.full(arguments["b"].shape, 20.0)
    arguments["A_log"] = mx.full((2,), -30.0)
    assert max(errors(arguments)) <= 1e-5


def test_what_a_masked_token_holds_does_not_matter() -> None:
    arguments = draw(90, 64, 32, B=2)
    mask = mx.arange(90) >= mx.array([[70], [3]])
    clean = run_plan(list(ops.gated_delta(**arguments, mask=mask)))[0]
    for name in ("q", "k", "v", "a", "b"):
        there = mask.reshape(2, 90, *[1] * (arguments[name].ndim - 2))
        arguments[name] = mx.where(there, arguments[name], float("nan"))
    soiled = run_plan(list(ops.gated_delta(**arguments, mask=mask)))[0]
    for found, expected in zip(soiled, clean, strict=True):
        assert mx.array_equal(found, expected)
