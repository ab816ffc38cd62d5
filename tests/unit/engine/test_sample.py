"""Sampling against the same definitions in plain numpy, float64, by sorting."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core, ops
from mlx_delta.engine.sample import Sampler, SamplingParams
from support.sampling import check_nothing_to_choose_from

MARGIN = 1e-5  # a token whose filter decision lies closer than this to the threshold may go either way in float32


@pytest.fixture(params=_core.cpu_isas())
def choose(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU's kernels for each instruction set of this machine. A GPU's: tests/ops_metal/test_sample_ties.py."""
    before = _core.cpu_isa()
    _core.use_cpu_isa(request.param)
    yield request.param
    _core.use_cpu_isa(before)


def expected_distribution(row: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, float]:
    """Probabilities of one row of logits after temperature, top_k, top_p and min_p; and how close a decision was."""
    logits = row.astype(np.float64) / params.temperature
    order = np.argsort(-logits, kind="stable")
    margin = math.inf
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        mass = np.exp(logits[order] - logits[order[0]])
        before = np.cumsum(mass) - mass
        margin = float(np.abs(before[1:] / mass.sum() - params.top_p).min(initial=math.inf))
        order = order[before < params.top_p * mass.sum()]
    if params.min_p > 0:
        ratio = np.exp(logits[order] - logits[order[0]])
        margin = min(margin, float(np.abs(ratio[ratio < 1] - params.min_p).min(initial=math.inf)))
        order = order[ratio >= params.min_p]
    result = np.zeros_like(logits)
    result[order] = np.exp(logits[order] - logits[order[0]])
    return result / result.sum(), margin


def assert_draws(row: mx.array, expected: np.ndarray, params: SamplingParams) -> None:
    """Random points at both ends of each token's part of the probabilities ``expected`` give that token."""
    ends = expected.cumsum()
    ids = np.flatnonzero(expected > 1e-4)
    inset = np.maximum(1e-3 * expected[ids], 1e-5)
    points = np.concatenate([ends[ids] - expected[ids] + inset, ends[ids] - inset])
    found = ops.sample(
        mx.broadcast_to(row, (points.size, row.size)),
        mx.array((points * 2.0**64).astype(np.uint64)),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )
    np.testing.assert_array_equal(np.array(found), np.tile(ids, 2))


FILTERS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=20),
    SamplingParams(temperature=1.5, top_p=0.9),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    SamplingParams(temperature=1.2, top_k=50, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_k=10_000, top_p=0.5),
    SamplingParams(temperature=1.0, top_p=1e-6),
    SamplingParams(temperature=1.0, min_p=1.0),
]


SHAPES = {
    "normal": lambda rng, n: rng.normal(0, 3, n),
    "tied": lambda rng, n: rng.normal(0, 2, n).round(),
    "equal": lambda rng, n: np.full(n, 3.25),
    "masked": lambda rng, n: np.where(rng.random(n) < 0.8, -np.inf, rng.normal(0, 2, n)),
    "peaked": lambda rng, n: rng.normal(0, 1, n) + 12 * (np.arange(n) == n // 3),
    "far": lambda rng, n: -(10.0 ** rng.uniform(-3, 6, n)),
}


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_distributions(shape: str, params: SamplingParams, choose: str) -> None:
    compared = 0
    for vocabulary in (1, 7, 128, 1000, 2100):
        rng = np.random.default_rng(vocabulary)
        for _ in range(2):
            row = SHAPES[shape](rng, vocabulary).astype(np.float32)
            if not np.isfinite(row).any():
                row[0] = 0
            expected, margin = expected_distribution(row, params)
            # Among equals every decision is a multiple of one mass: whole numbers, in which nothing is rounded.
            if margin > MARGIN or shape == "equal":
                assert_draws(mx.array(row), expected, params)
                compared += 1
    assert compared >= 8


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_ties_are_settled_by_id(dtype: mx.Dtype, choose: str) -> None:
    """bfloat16 logits are full of ties: the k kept are those of a stable descending sort, exactly."""
    rng = np.random.default_rng(0)
    logits = mx.array(rng.normal(0, 2, size=(1, 3000)).round(1)).astype(dtype)
    order = np.argsort(-np.array(logits.astype(mx.float32))[0], kind="stable")
    points = mx.array(np.linspace(0, 2.0**64, 8000, endpoint=False).astype(np.uint64))
    for k in (1, 5, 400):
        # So hot that all are alike: each of the kept ones is drawn.
        drawn = ops.sample(mx.broadcast_to(logits, (8000, 3000)), points, temperature=1000.0, top_k=k)
        np.testing.assert_array_equal(np.unique(np.array(drawn)), np.sort(order[:k]))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=t, top_k=k, top_p=p)
        for t in (0.3, 1.0, 3.0)
        for k, p in ((0, 0.9), (40, 0.95), (0, 1.0))
    ],
)
def test_a_vocabulary(params: SamplingParams) -> None:
    """248,320 logits, rounded to bfloat16: tokens at random points, against sorted float64."""
    rng = np.random.default_rng(11)
    logits = mx.array(rng.normal(0, 2, size=(6, 248_320))).astype(mx.bfloat16)
    random = mx.array(rng.integers(0, 2**64, size=6, dtype=np.uint64))
    settings = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    assert mx.array_equal(ops.sample(logits, random, **settings), ops.sample_reference(logits, random, **settings))


def test_draws_do_not_depend_on_the_number_of_threads() -> None:
    """Nor on the width of vectors, where both multiply and add in one step."""
    program = """if True:
        import mlx.core as mx, numpy as np
        from mlx_delta import _core, ops
        rng = np.random.default_rng(0)
        logits = mx.array(rng.normal(0, 2, size=(40, 40_000)).astype(np.float32))
        random = mx.array(rng.integers(0, 2**64, size=40, dtype=np.uint64))
        for isa in [isa for isa in _core.cpu_isas() if isa != "portable"] or _core.cpu_isas():
            _core.use_cpu_isa(isa)
            print([ops.sample(logits, random, top_p=p, temperature=2.0).tolist() for p in (0.7, 1.0)])
    """
    found = set()
    for threads in "1", "2", "5":
        environment = {**os.environ, "MLX_DELTA_THREADS": threads}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.update(done.stdout.splitlines())
    assert len(found) == 1


def test_nothing_to_choose_from() -> None:
    check_nothing_to_choose_from(lambda logits, random, **settings: ops.sample(logits, random, **settings).tolist())


@pytest.mark.parametrize(
    ("params", "degrees", "bound"),
    [
        (SamplingParams(temperature=0.8, top_k=5, seed=3), 4, 23.5),
        (SamplingParams(temperature=3.0, seed=4), 199, 281.6),
        (SamplingParams(temperature=2.0, top_p=0.5, seed=5), 60, 107.0),
    ],
)
def test_frequencies(params: SamplingParams, degrees: int, bound: float, choose: str) -> None:
    """20 000 draws follow the distribution: chi-squared below its 1e-4 tail for that many degrees of freedom."""
    row = np.random.default_rng(5).normal(size=200).astype(np.float32)
    drawn = Sampler(params, 200).sample(mx.broadcast_to(mx.array(row), (20_000, 200)))
    counts = np.bincount(np.array(drawn), minlength=200)
    expected, _ = expected_distribution(row, params)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert kept.sum() == degrees + 1
    assert ((counts - 20_000 * expected)[kept] ** 2 / (20_000 * expected[kept])).sum() < bound


@pytest.mark.parametrize("params", [*FILTERS, SamplingParams(), SamplingParams(presence_penalty=1.5)])
def test_padding_is_never_sampled(params: SamplingParams) -> None:
    logits = np.full((64, 300), -5.0, dtype=np.float32)
    for padding in (-5.0, 1e4, np.inf, np.nan):
        logits[:, 250:] = padding
        sampler = Sampler(params, 250)
        for _ in range(3):
            tokens = sampler.sample(mx.array(logits))
            assert tokens.dtype == mx.int32
            assert tokens.shape == (64,)
            assert 0 <= tokens.min().item() <= tokens.max().item() < 250


def test_seed() -> None:
    logits = [mx.array(np.random.default_rng(i).normal(size=(2, 500)).astype(np.float32)) for i in range(20)]

    def run(seed: int | None) -> list[list[int]]:
        sampler = Sampler(SamplingParams(temperature=2.0, seed=seed), 500)
        return mx.stack([sampler.sample(step) for step in logits]).tolist()

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)
    assert run(2**64 - 1) == run(2**64 - 1)
    sampler = Sampler(SamplingParams(temperature=2.0, seed=1), 500)
    assert len({sampler.sample(logits[0][:1]).item() for _ in range(50)}) > 10
    same = mx.broadcast_to(logits[0][:1], (50, 500))
    assert len(set(Sampler(SamplingParams(temperature=2.0, seed=1), 500).sample(same).tolist())) > 10


def test_greedy() -> None:
    logits = mx.array([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -2.0, -3.0, 9.0]])
    for temperature in (0.0, 1e-12):
        params = SamplingParams(temperature=temperature, top_k=2, top_p=0.5)
        assert Sampler(params, 3).sample(logits).tolist() == [1, 0, 0]
        assert Sampler(params, 4).sample(logits.astype(mx.bfloat16)).tolist() == [1, 0, 3]


def test_penalties_follow_the_definitions(choose: str) -> None:
    """Each token's own point draws it, which tells the masses and so the penalized logits."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, size=50).astype(np.float32)
    prompt, generated = rng.random(50) < 0.3, rng.random(50) < 0.3
    penalized = np.where(prompt | generated, np.where(logits > 0, logits / 1.3, logits * 1.3), logits) - 0.7 * generated
    expected, _ = expected_distribution(penalized, SamplingParams(temperature=2.0))
    middles = ((expected.cumsum() - expected / 2) * 2.0**64).astype(np.uint64)
    found = ops.sample(
        mx.broadcast_to(mx.array(logits), (50, 50)),
        mx.array(middles),
        temperature=2.0,
        prompt=mx.array(prompt)[None],
        generated=mx.array(generated)[None],
        presence_penalty=0.7,
        repetition_penalty=1.3,
    )
    assert found.tolist() == list(range(50))


def test_penalties_over_steps() -> None:
    """Greedy with a strong presence penalty walks down the logits; the repetition penalty counts the prompt as well."""
    logits = mx.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    sampler = Sampler(SamplingParams(presence_penalty=10.0), 5, prompt=[0, 1])
    assert mx.stack([sampler.sample(logits) for _ in range(5)]).T.tolist() == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    sampler = Sampler(SamplingParams(repetition_penalty=10.0), 5, prompt=[[0, 1], [4]])
    assert mx.stack([sampler.sample(logits) for _ in range(3)]).T.tolist() == [[2, 3, 4], [3, 2, 1]]
    sampler = Sampler(SamplingParams(repetition_penalty=10.0), 5, prompt=[0, 4])
    assert sampler.sample(logits).tolist() == [1, 3]
    sampler = Sampler(SamplingParams(temperature=0.01, presence_penalty=10.0, top_k=2, seed=0), 5)
    assert mx.stack([sampler.sample(logits) for _ in range(5)]).T.tolist() == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -1, ">= 0"),
        ("temperature", math.nan, ">= 0"),
        ("top_k", -1, "an integer >= 0"),
        ("top_k", 2.5, "an integer >= 0"),
        ("top_p", 0.0, "> 0 and <= 1"),
        ("min_p", 1.5, ">= 0 and <= 1"),
        ("presence_penalty", math.inf, "a finite number"),
        ("presence_penalty", -1e300, "a finite number"),
        ("repetition_penalty", 1e-300, "> 0"),
        ("repetition_penalty", 0.0, "> 0"),
        ("seed", -1, "an integer >= 0 and < 2**64"),
    ],
)
def test_errors(name: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: expected {expected}, found {value!r}')}$"):
        SamplingParams(**{name: value})


def test_shapes_are_checked() -> None:
    sampler = Sampler(SamplingParams(), 10)
    for shape in ((10,), (1, 9), (1, 1, 10)):
        with pytest.raises(ValueError, match=r"logits: expected shape \[B, >= 10\], found"):
            sampler.sample(mx.zeros(shape))
    with pytest.raises(ValueError, match="prompt: expected ids from 0 to 9, found 3 to 10"):
        Sampler(SamplingParams(repetition_penalty=1.1), 10, prompt=[3, 10])
