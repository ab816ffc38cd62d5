"""Tokens that may be taken back: whatever comes at once and whatever counts, the bits are those of a token a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import ops
from mlx_delta.bench.cases import CASES, DTYPES


def arguments(dtype: mx.Dtype, B: int, T: int) -> dict[str, Any]:
    """Of a case, over B sequences of T tokens."""
    case = next(c for c in CASES if c.op == "delta_mixer" and c.name == "b2t4h1x3d128")
    made = {name: value for name, value in case.arguments(dtype).items() if name not in ("pending", "keep")}
    tokens = mx.random.normal((B, T, made["projection"].shape[2]), key=mx.random.key(3)).astype(dtype)
    states = {name: mx.contiguous(made[name][:B]) for name in case.states}
    return {**made, "projection": tokens, **states}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_tokens_taken_back_leave_the_bits_of_those_that_count(dtype: mx.Dtype) -> None:
    """Eight drafts after 1 to 8 of the eight before them, then one token for good: y and both states."""
    made = arguments(dtype, B=1, T=8)
    projection = made.pop("projection")
    start = made.pop("conv_state"), made.pop("delta_state")

    def steps(tokens: mx.array, states: Sequence[mx.array]) -> tuple[mx.array, Sequence[mx.array]]:
        rows = []
        for t in range(tokens.shape[1]):
            y, *states = ops.delta_mixer(tokens[:, t : t + 1], conv_state=states[0], delta_state=states[1], **made)
            rows.append(y)
        return mx.concatenate(rows, axis=1), states

    first = ops.delta_mixer(projection, conv_state=start[0], delta_state=start[1], keep=False, **made)
    assert mx.array_equal(first[0], steps(projection, start)[0])
    assert all(mx.array_equal(a, b) for a, b in zip(first[1:], start, strict=True))
    for kept in range(1, 9):
        _, states = steps(projection[:, :kept], start)
        pending, following = projection[:, :kept], projection[:, ::-1]
        y, *found = ops.delta_mixer(
            following, conv_state=start[0], delta_state=start[1], pending=pending, keep=False, **made
        )
        assert all(mx.array_equal(a, b) for a, b in zip(found, states, strict=True))
        assert mx.array_equal(y, steps(following, states)[0])
        y, *found = ops.delta_mixer(
            following[:, :1], conv_state=start[0], delta_state=start[1], pending=pending, **made
        )
        expected, states = steps(following[:, :1], states)
        assert mx.array_equal(y, expected)
        assert all(mx.array_equal(a, b) for a, b in zip(found, states, strict=True))


def test_states_are_not_copied_for_tokens_that_may_be_taken_back() -> None:
    made = arguments(mx.bfloat16, B=2, T=4)
    mx.eval([each for each in made.values() if isinstance(each, mx.array)])
    size = made["delta_state"].nbytes
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        y, made["conv_state"], made["delta_state"] = ops.delta_mixer(keep=False, **made)
        made["pending"] = made["projection"][:, :2]
        mx.eval(y, made["conv_state"], made["delta_state"])
        del y
    assert mx.get_peak_memory() - before < size // 2


def test_pending_tokens_are_checked() -> None:
    made = arguments(mx.float32, B=1, T=1)
    with pytest.raises(ValueError, match=r"delta_mixer: pending: expected shape"):
        ops.delta_mixer(pending=made["projection"][:, :, 1:], **made)
    with pytest.raises(ValueError, match="delta_mixer: pending: expected"):
        ops.delta_mixer(pending=made["projection"].astype(mx.bfloat16), **made)


def sequences(dtype: mx.Dtype) -> dict[str, Any]:
    """Those of a case: 1 to 8 tokens each, some after pending ones, some that may be taken back."""
    return next(c for c in CASES if c.id == "delta_mixer_rows-mixed-h1x2d64").arguments(dtype)


def of_one(made: dict[str, Any], i: int) -> dict[str, Any]:
    """The arguments of delta_mixer for sequence i of those of delta_mixer_rows."""
    first = sum(made["counts"][:i])
    rows = made["projection"][first : first + made["counts"][i]]
    shared = {name: made[name] for name in ("conv_weight", "A_log", "dt_bias", "norm", "key_heads", "key_dim")}
    states = {"conv_state": made["conv_states"][i], "delta_state": made["delta_states"][i]}
    return {
        **shared, **states, "projection": rows.swapaxes(0, 1), "pending": made["pending"][i], "keep": made["keep"][i]
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_a_sequence_has_the_bits_that_it_has_alone_whatever_the_company(dtype: mx.Dtype) -> None:
    made = sequences(dtype)
    y, convs, deltas = ops.delta_mixer_rows(**made)
    first = 0
    for i, count in enumerate(made["counts"]):
        alone = ops.delta_mixer(**of_one(made, i))
        found = y[first : first + count].swapaxes(0, 1), convs[i], deltas[i]
        assert all(mx.array_equal(a, b) for a, b in zip(found, alone, strict=True)), i
        first += count


def test_more_sequences_than_a_call_of_the_kernel_takes() -> None:
    made = sequences(mx.bfloat16)
    lists = ("conv_states", "delta_states", "counts", "pending", "keep")
    most = {**made, **{name: made[name] * 3 for name in lists}, "projection": mx.tile(made["projection"], (3, 1, 1))}
    found, expected = ops.delta_mixer_rows(**most), ops.delta_mixer_rows(**made)
    assert mx.array_equal(found[0], mx.tile(expected[0], (3, 1, 1)))
    for states, of_eight in zip(found[1:], expected[1:], strict=True):
        assert all(mx.array_equal(a, b) for a, b in zip(states, of_eight * 3, strict=True))


def test_each_sequence_whose_states_nobody_holds_is_updated_in_place() -> None:
    """And one that is held, as what a prefix leaves is, is copied, and stays as it was."""
    made = sequences(mx.bfloat16)
    mx.eval([array for value in made.values() for array in (value if isinstance(value, list) else [value])
             if isinstance(array, mx.array)])  # fmt: skip
    held = made["delta_states"][2]
    before = held + 0
    mx.eval(before)
    places = [np.array(array, copy=False).ctypes.data for array in made["delta_states"]]
    y, made["conv_states"], made["delta_states"] = ops.delta_mixer_rows(**made)
    mx.eval(y, *made["conv_states"], *made["delta_states"])
    same = [np.array(a, copy=False).ctypes.data == at for a, at in zip(made["delta_states"], places, strict=True)]
    assert same == [i != 2 for i in range(8)]
    assert mx.array_equal(held, before)


def test_lists_of_sequences_are_checked() -> None:
    made = sequences(mx.float32)
    for change, error in (
        ({"counts": [1] * 8}, r"delta_mixer: counts: expected tokens of all 21 rows, found 8"),
        ({"counts": [21, *[0] * 7]}, "delta_mixer: counts: expected a positive number"),
        # In 32 bits these are 21.
        ({"counts": [2**31 - 1, 2**31 - 1, 18, *[1] * 5]}, "delta_mixer: counts: expected tokens of all 21 rows"),
        (
            {"delta_states": made["delta_states"][:7]},
            "delta_mixer: delta_states: expected one for each of 8 .* found 7",
        ),
        ({"keep": [True]}, "delta_mixer: keep: expected one for each of 8"),
        ({"pending": [made["projection"]] * 8}, r"delta_mixer: pending: expected shape \[1, 1, 388\], found .* \[21"),
    ):
        with pytest.raises(ValueError, match=error):
            ops.delta_mixer_rows(**{**made, **change})
