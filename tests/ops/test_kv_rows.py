"""Keys and values in 8 bits: what a row holds, and that it depends on nothing but its own token."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core, ops
from mlx_delta.bench.cases import DTYPES, Arguments
from mlx_delta.bench.cases.draws import normal


@pytest.mark.parametrize("D", [64, 256, 72, 7])
def test_a_row_is_within_half_a_step_of_what_it_stands_for(D: int) -> None:
    """By numpy, group by group; what is not finite shows, and nothing becomes something."""
    rng = np.random.default_rng(D)
    x = (rng.standard_normal((5, D)) * 10.0 ** rng.integers(-6, 6, (5, 1))).astype(np.float32)
    x[1, : min(D, 64)] = 0
    rows = ops.quantize_kv(mx.array(x))
    assert rows.dtype == mx.uint8
    assert rows.shape == (5, ops.kv_row_bytes(D))
    found = np.array(ops.dequantize_kv(rows, D))
    for start in range(0, D, 64):
        part, of = x[:, start : start + 64], found[:, start : start + 64]
        step = np.abs(part).max(axis=1, keepdims=True) / 127
        assert (np.abs(part - of) <= 0.5 * step * (1 + 2**-7)).all()  # the scale is a bfloat16
    assert not found[1, : min(D, 64)].any()
    for broken in (np.nan, np.inf, -np.inf):
        x[2, 0] = broken
        found = np.array(ops.dequantize_kv(ops.quantize_kv(mx.array(x)), D))
        assert np.isnan(found[2, : min(D, 64)]).all()
        assert np.isfinite(np.delete(found, 2, axis=0)).all()
        assert np.isfinite(found[2, 64:]).all()


def projected(dtype: mx.Dtype, T: int, D: int, broken: bool = False) -> Arguments:
    """Of attention_prepare, without its cache."""
    rng = np.random.default_rng(T)
    projection = normal(rng, 2, T, (2 * 2 + 2 * 2) * D, dtype=dtype)
    if broken:
        projection[0, 1, -1] = mx.nan  # a value
    return {
        "projection": projection,
        "q_norm": 1 + normal(rng, D, scale=0.1),
        "k_norm": 1 + normal(rng, D, scale=0.1),
        **{"rope_theta": 1e7, "rope_dim": 16, "rope_sections": (4, 2, 2)},
    }


def part(arguments: Arguments, start: int, end: int) -> Arguments:
    return {**arguments, "projection": arguments["projection"][:, start:end], "offset": 3 + start}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("D", [64, 72])
def test_rows_are_those_of_the_plain_cache_quantized_however_a_prompt_is_cut(dtype: mx.Dtype, D: int) -> None:
    """Byte for byte, by every instruction set; a row that was taken back and comes again is written over."""
    T = 21
    arguments = projected(dtype, T, D, broken=True)
    before = normal(np.random.default_rng(1), 2, 2, T + 5, D, dtype=dtype)
    chosen = _core.cpu_isa()
    try:
        for isa in _core.cpu_isas():
            _core.use_cpu_isa(isa)
            plain = ops.attention_prepare(**part(arguments, 0, T), keys=before, values=before)
            expected = [ops.quantize_kv(rows) for rows in plain[1:]]
            for cuts in ([0, T], [0, 1, 2, 19, T], [0, 16, T]):
                keys = values = ops.quantize_kv(before)
                for start, end in itertools.pairwise(cuts):
                    for _ in range(2):  # as after drafts that were wrong
                        q, keys, values = ops.attention_prepare(**part(arguments, start, end), keys=keys, values=values)
                        assert mx.array_equal(q, plain[0][:, :, start:end])
                assert mx.array_equal(keys, expected[0]), isa
                assert mx.array_equal(values, expected[1]), isa
    finally:
        _core.use_cpu_isa(chosen)
    assert mx.isnan(ops.dequantize_kv(values[0, 1, 4], D)[-1]).item()


@pytest.mark.parametrize("name", ["keys", "values"])
def test_wrong_rows(name: str) -> None:
    rows = mx.zeros((1, 2, 5, ops.kv_row_bytes(64)), mx.uint8)
    arguments = {
        "q": mx.zeros((1, 4, 1, 64)),
        "projection": mx.zeros((1, 1, 512)),
        **{"keys": rows, "values": rows, "length": 3, "scale": 1.0},
    }
    arguments[name] = rows[..., 1:]
    with pytest.raises(ValueError, match=rf"attention: {name}: expected shape .*66.*, found uint8 .*65"):
        ops.attention(**arguments)
    arguments[name] = mx.zeros((1, 2, 5, 64 if name == "keys" else 66))
    with pytest.raises(ValueError, match=r"attention: values: expected"):
        ops.attention(**arguments)
