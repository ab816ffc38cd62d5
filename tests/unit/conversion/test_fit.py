"""The fitted quantizer: MLX's format bit for bit, and a smaller weighted error than MLX's own on every matrix."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core
from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.registry import read_config
from mlx_delta.config import Quantization
from mlx_delta.conversion.awq import clean_importance
from mlx_delta.conversion.fit import fit, fit_error, fit_reference, pack, to_bfloat16
from mlx_delta.conversion.imatrix import read_imatrix
from support import TINY

WIDTHS = (2, 3, 4, 5, 6, 8)


def restored(parts: tuple[mx.array, ...], width: Quantization) -> np.ndarray:
    packed, *rest = parts
    scales, biases = (part.astype(mx.float32) for part in rest)
    return np.array(mx.dequantize(packed, scales, biases, group_size=width.group_size, bits=width.bits))


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_is_mlx_s(bits: int) -> None:
    """Weights that are integers already: mx.quantize must find them, and packs them as we do."""
    q = np.random.default_rng(bits).integers(0, 2**bits, (6, 192))
    q[:, ::64], q[:, 1::64] = 0, 2**bits - 1
    packed = mx.array(pack(q, bits))
    ones, zeros = mx.ones((6, 3)), mx.zeros((6, 3))
    assert np.array_equal(np.array(mx.dequantize(packed, ones, zeros, group_size=64, bits=bits)), q)
    theirs, scales, biases = mx.quantize(mx.array(q.astype(np.float32)), group_size=64, bits=bits)
    assert np.array_equal(np.array(mx.dequantize(theirs, scales, biases, group_size=64, bits=bits)), q)
    ascending = np.array(scales)[:, :1] > 0  # MLX may count down from the larger end: q then is the complement
    expected = np.where(ascending, np.array(mx.array(pack(q, bits))), pack(2**bits - 1 - q, bits))
    assert np.array_equal(np.array(theirs), expected)


@pytest.mark.parametrize("bits", WIDTHS)
def test_error_falls_on_every_matrix(bits: int) -> None:
    """Every third quantizable matrix of the tiny model, weighted by its importance; in all, by a sixth or more."""
    config = read_config(TINY)
    tensors, importance = open_checkpoint(TINY).tensors, read_imatrix(TINY / "imatrix.gguf", config)
    ours = theirs = 0.0
    for module in sorted(importance)[bits % 3 :: 3]:
        group = (32, 64, 128)[len(module) % 3]
        width, weight = Quantization(bits, group), tensors[f"{module}.weight"].load()
        h, matrix = clean_importance(importance[module]), np.array(weight.astype(mx.float32))
        found = fit(weight, width, h)
        assert found.scales.dtype == found.biases.dtype == mx.bfloat16
        after = restored((found.packed, found.scales, found.biases), width)
        before = restored(tuple(mx.quantize(weight, group_size=group, bits=bits)), width)
        error, plain = (float((h * (matrix - w) ** 2).sum(dtype=np.float64)) for w in (after, before))
        assert error < plain, module
        assert abs(fit_error(weight, width, h) / error - 1) < 1e-4
        ours, theirs = ours + error / plain, theirs + 1
    assert ours < theirs * 5 / 6


def test_what_fits_exactly_is_exact() -> None:
    """Few values a group, constant groups and zeros; and any dtype gives the same."""
    width = Quantization(2, 32)
    rows = [np.tile([-1, 0.5], 32), np.full(64, 0.75), np.zeros(64), np.repeat([1e-30, -3.0], 32)]
    weight = np.array(rows, np.float32)
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        found = fit(mx.array(weight).astype(dtype), width, np.linspace(0.1, 5, 64, dtype=np.float32))
        assert np.allclose(restored((found.packed, found.scales, found.biases), width), weight, rtol=4e-3, atol=1e-6)


def test_importance_decides_where_the_error_falls() -> None:
    """A channel a thousand times as important as the others of its group ends up nearly exact."""
    rng = np.random.default_rng(0)
    weight, width = rng.standard_normal((256, 64)).astype(np.float32), Quantization(3, 64)
    importance = np.ones(64, np.float32)
    errors = []
    for importance[5] in (1, 1000):
        found = fit(mx.array(weight), width, importance)
        errors.append(((weight - restored((found.packed, found.scales, found.biases), width)) ** 2).sum(axis=0)[5])
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize("bits", WIDTHS)
def test_kernel_is_its_reference(bits: int, isa: str) -> None:
    """In all dtypes and groups: the same errors, integers, scales and biases, but for what ties decide.

    At 8 bits the rounding of the scale is most of the error, so that its neighbours are nearly as good.
    """
    rng, least = np.random.default_rng(bits), 0.75 if bits == 8 else 0.95
    before = _core.cpu_isa()
    _core.use_cpu_isa(isa)
    try:
        for group, dtype in ((32, mx.float32), (64, mx.bfloat16), (128, mx.float16)):
            width, h = Quantization(bits, group), np.exp(rng.normal(0, 1, 256)).astype(np.float32)
            weight = mx.array(rng.standard_normal((200, 256)).astype(np.float32) + 0.3).astype(dtype)
            found, expected = fit(weight, width, h), fit_reference(weight, width, h)
            ours, theirs = (np.array(each.errors) for each in (found, expected))
            assert np.isclose(ours, theirs, rtol=1e-3).mean() > least
            assert abs(ours.sum() / theirs.sum() - 1) < 1e-2
            same = [np.array(a == b).mean() for a, b in zip(vars(found).values(), vars(expected).values(), strict=True)]
            assert min(same[:3]) > least, (group, same)
    finally:
        _core.use_cpu_isa(before)


def test_kernel_refuses_what_does_not_fit() -> None:
    weight, h = mx.ones((2, 64)), mx.ones(64)
    mx.eval(weight, h)
    for arguments, message in (
        ((weight, h, 7, 64), "fit_affine: bits: expected 2, 3, 4, 5, 6 or 8, found 7"),
        ((weight, h, 4, 48), "fit_affine: group_size: expected 32, 64 or 128, found 48"),
        (
            (weight, h, 4, 128),
            r"fit_affine: weight: expected K a multiple of the group size 128, found float32 \[2, 64\]",
        ),
        ((weight, mx.ones(32), 4, 64), r"fit_affine: importance: expected .*64.*, found"),
        ((weight.T, h, 4, 64), "fit_affine: "),
        ((mx.ones((2, 64)) + 1, h, 4, 64), "fit_affine: weight: expected an evaluated, contiguous array"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.fit_affine(*arguments)


def test_bfloat16_rounding_is_mlx_s() -> None:
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 1e3
    values[:3] = 1 + 2**-8, 1 + 3 * 2**-8, -0.0  # ties to even
    assert np.array_equal(to_bfloat16(values), np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32)))
