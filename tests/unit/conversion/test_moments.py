"""Rounding with error feedback: against GPTQ as published, in float64, and what must hold of it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core
from mlx_delta.config import Quantization
from mlx_delta.conversion import moments as moments_module
from mlx_delta.conversion.fit import Fit, fit
from mlx_delta.conversion.moments import (
    Moments,
    damping,
    falling_order,
    feedback_reference,
    fit_with_feedback,
    restoring_reference,
)


def correlated(tokens: int, columns: int, seed: int = 0) -> mx.array:
    """Inputs as a layer has them: a few directions in common, channels of very different size."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((tokens, 8)) @ rng.standard_normal((8, columns))
    x = (common + rng.standard_normal((tokens, columns))) * np.exp(rng.normal(0, 0.7, columns))
    return mx.array(x.astype(np.float32))


def weights(rows: int, columns: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)).astype(dtype)


def moments_of(x: mx.array, lack: mx.array | None = None, outputs: int | None = None) -> Moments:
    moments, lack = Moments(x.shape[1], outputs), mx.zeros_like(x) if lack is None else lack
    for start in range(0, x.shape[0], 200):
        moments.add(x[start : start + 200], lack[start : start + 200])
    return moments


def restored(found: Fit, width: Quantization) -> np.ndarray:
    scales, biases = (part.astype(mx.float32) for part in (found.scales, found.biases))
    return np.array(mx.dequantize(found.packed, scales, biases, group_size=width.group_size, bits=width.bits))


def damped_moments(x: mx.array) -> np.ndarray:
    h = np.array(x, np.float64).T @ np.array(x, np.float64) / x.shape[0]
    return h + damping(np.diag(h), x.shape[0]) * np.eye(h.shape[0])


def output_error(weight: mx.array, q: np.ndarray, h: np.ndarray) -> float:
    d = np.array(weight.astype(mx.float32), np.float64) - q
    return float(((d @ h) * d).sum())


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize("columns", [32, 96, 640])
def test_factors_give_the_moments_back(columns: int, isa: str) -> None:
    """U D U^T of ordered inputs, in float64, is their damped moments."""
    before = _core.cpu_isa()
    _core.use_cpu_isa(isa)
    try:
        x = correlated(1000, columns)
        moments = moments_of(x)
        importance = moments.importance
        assert np.allclose(importance, (np.array(x, np.float64) ** 2).mean(0), rtol=1e-5)
        found = moments.feedback(32)
    finally:
        _core.use_cpu_isa(before)
    order, d = np.array(found.order), np.array(found.diagonal, np.float64)
    assert np.array_equal(order, falling_order(importance, 32))
    upper = np.triu(np.array(found.upper, np.float64), 1) + np.eye(columns)
    expected = damped_moments(x)[np.ix_(order, order)]
    assert np.abs((upper * d) @ upper.T - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize(
    ("shape", "width", "dtype"),
    [
        ((70, 96), Quantization(3, 32), mx.float32),
        ((1, 64), Quantization(2, 64), mx.float32),
        ((130, 640), Quantization(4, 128), mx.float16),
        ((64, 192), Quantization(6, 64), mx.bfloat16),
    ],
)
def test_kernel_is_gptq(
    shape: tuple[int, int], width: Quantization, dtype: mx.Dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published recursion by the inverse's factor gives the same weights, but for what ties decide, and error."""
    monkeypatch.setattr(moments_module, "_BLOCK", 48 * shape[1])
    x, weight = correlated(900, shape[1]), weights(*shape, dtype)
    before = _core.cpu_isa()
    _core.use_cpu_isa(isa)
    try:
        feedback = moments_of(x).feedback(block=min(64, width.group_size))
        found = fit_with_feedback(weight, width, feedback)
    finally:
        _core.use_cpu_isa(before)
    plain = np.array(weight.astype(mx.float32))
    expected, error = feedback_reference(plain, damped_moments(x), width, np.array(feedback.order))
    q = restored(found, width)
    # A scale that is as good as its neighbour in bfloat16, more often the case with more bits, changes what follows.
    assert np.isclose(q, expected, atol=1e-5).mean() > (0.95 if width.bits < 5 else 0.9)
    assert output_error(weight, q, damped_moments(x)) == pytest.approx(error, rel=0.01)
    assert np.array(found.errors).sum(dtype=np.float64) == pytest.approx(
        output_error(weight, q, damped_moments(x)), rel=1e-3
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_output_error_falls(bits: int) -> None:
    """Against the plain fit by the diagonal, on inputs that it was not made for too."""
    x, unseen, width, weight = correlated(2000, 256), correlated(2000, 256), Quantization(bits, 64), weights(96, 256)
    moments = moments_of(x)
    plain = restored(fit(weight, width, moments.importance), width)
    fed = restored(fit_with_feedback(weight, width, moments.feedback()), width)
    assert output_error(weight, fed, damped_moments(x)) < 0.6 * output_error(weight, plain, damped_moments(x))
    assert output_error(weight, fed, damped_moments(unseen)) < 0.6 * output_error(weight, plain, damped_moments(unseen))


def test_uncorrelated_inputs_are_the_plain_fit() -> None:
    """Bit for bit: one channel a token makes H diagonal, and what each leaves over is of no use to another."""
    for group in (32, 64, 128):
        size = np.linspace(3, 1, 256).astype(np.float32)  # falling, so that order changes nothing
        width, weight = Quantization(3, group), weights(65, 256, mx.bfloat16)
        feedback = moments_of(mx.array(np.diag(size))).feedback(block=min(64, group))
        found, expected = fit_with_feedback(weight, width, feedback), fit(weight, width, np.array(feedback.diagonal))
        for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
            assert mx.array_equal(ours, theirs)


def test_inputs_that_never_were() -> None:
    """Silent channels, or none but silent ones, leave finite weights."""
    width, weight = Quantization(4, 32), weights(4, 64)
    x = correlated(50, 64) * (mx.arange(64) % 3 > 0)
    for inputs in (x, mx.zeros((50, 64))):
        q = restored(fit_with_feedback(weight, width, moments_of(inputs).feedback(block=32)), width)
        assert np.abs(q - np.array(weight)).max() < 1


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize(("rows", "columns", "of_inputs"), [(1, 32, True), (70, 640, True), (64, 96, False)])
def test_restored_weights_are_the_regression(
    rows: int, columns: int, of_inputs: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the original gives on what the quantized model reads, in float64; blocks of 32 rows."""
    monkeypatch.setattr(moments_module, "_BLOCK", 32 * columns)
    x, weight = correlated(900, columns), weights(rows, columns, mx.bfloat16)
    lack = correlated(900, columns if of_inputs else rows, seed=3) * 0.1 + x[:, :1]
    before = _core.cpu_isa()
    _core.use_cpu_isa(isa)
    try:
        found = mx.concatenate(list(moments_of(x, lack, None if of_inputs else rows).feedback(32).restored(weight)))
    finally:
        _core.use_cpu_isa(before)
    w, inputs, missing = (np.array(part.astype(mx.float32), np.float64) for part in (weight, x, lack))
    of_outputs = missing @ w.T if of_inputs else missing
    expected = restoring_reference(w, damped_moments(x), of_outputs.T @ inputs / 900)
    assert np.abs(expected - w).max() > 0.02  # there is something to restore
    assert np.abs(np.array(found) - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_inputs_lack_is_made_up_for() -> None:
    """Inputs that lost a part that the others tell of: on tokens not seen, outputs are what they were."""
    wanted = mx.split(correlated(8000, 32), 2)
    rng = np.random.default_rng(5)
    loss = mx.array((np.eye(32) + rng.normal(0, 0.05, (32, 32))).astype(np.float32))
    weight, ((x, y), (unseen, target)) = weights(16, 32), [(each @ loss, each) for each in wanted]
    (restored_weight,) = moments_of(x, y - x).feedback().restored(weight)
    plain, found = (mx.square(unseen @ w.T - target @ weight.T).mean() for w in (weight, restored_weight))
    assert (found < 0.1 * plain).item()


def test_kernels_refuse_what_does_not_fit() -> None:
    sums, ones, order = mx.zeros((64, 64)), mx.ones(64), mx.arange(64, dtype=mx.int32)
    weight, x, twice = mx.ones((2, 64)), mx.ones((2, 32)), mx.zeros(64, mx.int32)
    mx.eval(sums, ones, order, weight, x, twice)
    for call, message in (
        (lambda: _core.add_moments(sums, x), r"add_moments: sums: expected .*32, 32.*, found"),
        (lambda: _core.add_moments(sums, x, weight), r"add_moments: sums: expected .*64, 32.*, found"),
        (lambda: _core.add_moments(sums, x, sums), r"add_moments: y: expected .*2, .*, found"),
        (lambda: _core.factor_moments(sums, twice, 1.0, 0.01), "order: expected each block of 64 a permutation"),
        (lambda: _core.factor_moments(sums, order, 1.0, 0.0), "factor_moments: damping: expected"),
        (lambda: _core.solve_moments(weight, sums, x, order), "solve_moments: diagonal: expected"),
        (lambda: _core.solve_moments(weight, weight, ones, order), r"solve_moments: upper: expected .*64, 64"),
        (lambda: _core.solve_moments(x, sums, ones, order), r"solve_moments: upper: expected .*32, 32"),
        (lambda: _core.fit_affine(weight, ones, 4, 64, sums), "fit_affine: order: expected one with feedback, found"),
        (lambda: _core.fit_affine(weight, ones, 4, 32, sums, order[::-1] + 0), "fit_affine: order: expected"),
        (lambda: _core.fit_affine(weight, ones, 4, 64, weight, order), r"fit_affine: feedback: expected .*64, 64"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
