"""Sampling against the same definitions in plain numpy, float64."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.generate.sample import Sampler, SamplingParams, candidates, penalize

MARGIN = 1e-5  # a token whose filter decision lies closer than this to the threshold may go either way in float32


def expected_distribution(row: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, float]:
    """Probabilities of one row of logits after temperature, top_k, top_p and min_p; and how close a decision was."""
    logits = row.astype(np.float64) / params.temperature
    order = np.argsort(-logits, kind="stable")
    margin = math.inf
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        mass = np.exp(logits[order] - logits[order[0]])
        before = np.cumsum(mass / mass.sum()) - mass / mass.sum()
        margin = float(np.abs(before[1:] - params.top_p).min(initial=math.inf))
        order = order[before < params.top_p]
    if params.min_p > 0:
        ratio = np.exp(logits[order] - logits[order[0]])
        margin = min(margin, float(np.abs(ratio[1:] - params.min_p).min(initial=math.inf)))
        order = order[ratio >= params.min_p]
    result = np.zeros_like(logits)
    result[order] = np.exp(logits[order] - logits[order[0]])
    return result / result.sum(), margin


def distribution(logits: mx.array, params: SamplingParams) -> np.ndarray:
    kept, ids = candidates(logits, params)
    probabilities = mx.softmax(kept, axis=-1)
    if ids is not None:
        probabilities = mx.put_along_axis(mx.zeros(logits.shape), ids, probabilities, axis=-1)
    return np.array(probabilities)


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


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("vocabulary", [7, 128, 1000, 5003])
def test_distributions(params: SamplingParams, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(0, 3, size=(8, vocabulary)).astype(np.float32)
    found = distribution(mx.array(logits), params)
    compared = 0
    for row, probabilities in zip(logits, found, strict=True):
        expected, margin = expected_distribution(row, params)
        if margin > MARGIN:
            np.testing.assert_allclose(probabilities, expected, rtol=2e-5, atol=1e-7)
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_top_k_settles_ties_by_id(dtype: mx.Dtype) -> None:
    """bfloat16 logits are full of ties: the k kept are those of a stable descending sort, exactly."""
    rng = np.random.default_rng(0)
    logits = mx.array(rng.normal(0, 2, size=(4, 3000)).round(1)).astype(dtype)
    for k in (1, 5, 400):
        _, ids = candidates(logits, SamplingParams(temperature=1.0, top_k=k))
        expected = np.argsort(-np.array(logits.astype(mx.float32)), axis=-1, kind="stable")[:, :k]
        np.testing.assert_array_equal(np.array(ids), expected)


def test_frequencies() -> None:
    """20 000 draws follow the distribution: chi-squared below its 1e-4 tail for 4 degrees of freedom."""
    params = SamplingParams(temperature=0.8, top_k=5, seed=3)
    row = np.random.default_rng(5).normal(size=200).astype(np.float32)
    drawn = Sampler(params, 200).sample(mx.broadcast_to(mx.array(row), (20_000, 200)))
    counts = np.bincount(np.array(drawn), minlength=200)
    expected, _ = expected_distribution(row, params)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert ((counts - 20_000 * expected)[kept] ** 2 / (20_000 * expected[kept])).sum() < 23.5


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


def test_penalties_follow_the_definitions() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, size=(3, 50)).astype(np.float32)
    prompt = rng.random((3, 50)) < 0.3
    generated = rng.random((3, 50)) < 0.3
    params = SamplingParams(presence_penalty=0.7, repetition_penalty=1.3)
    seen = prompt | generated
    expected = np.where(seen, np.where(logits > 0, logits / 1.3, logits * 1.3), logits) - 0.7 * generated
    found = penalize(mx.array(logits), mx.array(prompt), mx.array(generated), params)
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-6)


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
        ("repetition_penalty", 0.0, "> 0"),
        ("seed", -1, "an integer >= 0 and < 2**64"),
    ],
)
def test_errors(name: str, value: float, expected: str) -> None:
    with pytest.raises(
        ValueError, match="^" + f"{name}: expected {expected}, found {value!r}".replace("*", r"\*") + "$"
    ):
        SamplingParams(**{name: value})


def test_shapes_are_checked() -> None:
    sampler = Sampler(SamplingParams(), 10)
    for shape in ((10,), (1, 9), (1, 1, 10)):
        with pytest.raises(ValueError, match=r"logits: expected shape \[B, >= 10\], found"):
            sampler.sample(mx.zeros(shape))
    with pytest.raises(ValueError, match="prompt: expected ids from 0 to 9, found 3 to 10"):
        Sampler(SamplingParams(repetition_penalty=1.1), 10, prompt=[3, 10])
