"""Tokens that may be taken back: whatever comes at once and whatever counts, the bits are those of a token a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
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
