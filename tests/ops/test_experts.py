"""What route and experts promise beyond their values: bits of a row, ties, experts that are not there."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core, ops
from mlx_delta.bench.cases import BOUNDS, DTYPES, Case, as_list, relative_rms
from mlx_delta.bench.cases.experts import experts_case, route_case, small_cases
from mlx_delta.ops import Matrix

WIDTHS = {"b4": (4, 64), "b3": (3, 64), "plain": mx.bfloat16}


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_rows_are_identical_whatever_the_batch(width: tuple[int, int] | mx.Dtype, isa: str) -> None:
    """Alone, among 16 that share experts with it, and where each is a sequence of its own."""
    before = _core.cpu_isa()
    _core.use_cpu_isa(isa)
    try:
        case = experts_case("rows", 16, 192, 128, 4, 2, (width, width, width), width)
        arguments = case.arguments(mx.bfloat16)
        rows = ("x", "chosen", "weights")
        (together,) = case.run(arguments)
        for few in (slice(0, 1), slice(5, 6), slice(3, 10)):
            (part,) = case.run({**arguments, **{name: arguments[name][few] for name in rows}})
            assert mx.array_equal(part, together[few])
        (sequences,) = case.run({**arguments, **{name: arguments[name][:, None] for name in rows}})
        assert mx.array_equal(sequences[:, 0], together)
        routed = route_case("rows", 16, 192, 32, 4, width, mx.bfloat16)
        routes = routed.arguments(mx.bfloat16)
        for found, expected in zip(routed.run({**routes, "x": routes["x"][7:9]}), routed.run(routes), strict=True):
            assert mx.array_equal(found, expected[7:9])
    finally:
        _core.use_cpu_isa(before)


def test_against_float64() -> None:
    """By a definition of its own, in numpy."""
    rng = np.random.default_rng(4)
    E, k, K, N = 6, 2, 40, 24
    x, norm = rng.standard_normal((3, K)), 1 + 0.1 * rng.standard_normal(K)
    router, gate_of_shared = rng.standard_normal((E, K)), rng.standard_normal((1, K))
    gate, up, down = (rng.standard_normal(s) / 6 for s in ((E, N, K), (E, N, K), (E, K, N)))
    shared = [rng.standard_normal(s) / 6 for s in ((N, K), (N, K), (K, N))]
    h = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * norm

    def mlp(v: np.ndarray, g: np.ndarray, u: np.ndarray, d: np.ndarray) -> np.ndarray:
        a = g @ v
        out: np.ndarray = d @ (a / (1 + np.exp(-a)) * (u @ v))
        return out

    expected, chosen = x.copy(), []
    for t in range(3):
        share = np.exp(router @ h[t])
        best = np.argsort(-share)[:k]
        chosen.append(best.tolist())
        for e in best:
            expected[t] += share[e] / share[best].sum() * mlp(h[t], gate[e], up[e], down[e])
        expected[t] += mlp(h[t], *shared) / (1 + np.exp(-gate_of_shared[0] @ h[t]))

    def matrix(a: np.ndarray) -> Matrix:
        return Matrix.plain(mx.array(a.reshape(-1, a.shape[-1]).astype(np.float32)))

    x32, norm32 = mx.array(x.astype(np.float32)), mx.array(norm.astype(np.float32))
    found, weights = ops.route(x32, matrix(router), matrix(gate_of_shared), norm32, chosen=k)
    y = ops.experts(x32, found, weights, [matrix(m) for m in (gate, up, down)], [matrix(m) for m in shared], norm32)
    assert found.tolist() == chosen
    assert np.abs(np.array(y) - expected).max() <= 1e-5


def test_of_equals_the_first_is_chosen() -> None:
    router = mx.repeat(mx.eye(4, 64), 2, axis=0)  # experts 2i and 2i + 1 are the same
    x = mx.array([[1.0, 3, 2, 0.5] + [0.0] * 60])
    chosen, weights = ops.route(x, Matrix.plain(router), Matrix.plain(mx.zeros((1, 64))), mx.ones(64), chosen=5)
    assert chosen.tolist() == [[2, 3, 4, 5, 0]]
    assert weights[0, 0] == weights[0, 1] > weights[0, 2] == weights[0, 3] > weights[0, 4]
    assert weights[0, 5] == 0.5
    assert abs(weights[0, :5].sum().item() - 1) < 1e-6


def test_a_row_of_nan_chooses_experts_that_are_there() -> None:
    case = next(case for case in small_cases() if case.id == "route-prompt")
    arguments = case.arguments(mx.float32)
    arguments["x"][1] = float("nan")
    chosen, weights = case.run(arguments)
    assert mx.isnan(weights).all(axis=1).tolist() == [row == 1 for row in range(chosen.shape[0])]
    assert sorted(set(chosen[1].tolist())) == chosen[1].tolist()
    assert chosen.max().item() < arguments["router"].rows


def test_an_expert_that_is_not_there_shows() -> None:
    case = next(case for case in small_cases() if case.id == "experts-plain")
    arguments = case.arguments(mx.float32)
    (expected,) = case.run(arguments)
    arguments["chosen"][3, 1] = 6
    (found,) = case.run(arguments)
    assert mx.isnan(found).all(axis=1).tolist() == [False, False, False, True, False]
    assert mx.array_equal(found[:3], expected[:3])


# On a CPU MLX adds up in bfloat16 where it is given that, which is too coarse to tell a wrong result, and multiplies
# plain matrices of chosen experts in float32 alone.
THROUGH_MLX = [
    (case, dtype)
    for case in small_cases()
    for dtype in DTYPES.values()
    if case.op == "route"
    or dtype == mx.float32
    or (dtype == mx.float16 and all(m.bits for m in case.arguments(mx.float32)["matrices"]))
]


@pytest.mark.parametrize(("case", "dtype"), THROUGH_MLX, ids=lambda value: str(getattr(value, "id", value)))
def test_through_mlx(case: Case, dtype: mx.Dtype) -> None:
    """What a GPU does: MLX rounds to the dtype after each product."""
    arguments = case.arguments(dtype)
    found = as_list(getattr(_core, f"{case.op}_mlx")(**arguments))
    bound = BOUNDS[mx.float32] if case.op == "route" else 2 * BOUNDS[dtype]
    for result, expected in zip(found, case.reference(arguments), strict=True):
        assert result.shape == expected.shape
        assert relative_rms(result, expected) <= bound
