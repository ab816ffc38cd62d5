"""Attention of several sequences at once: each row's bits are those that it has alone, and whose it is stays whole."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import ops
from mlx_delta.bench.cases import CASES, DTYPES, Case

ROWS = [case for case in CASES if case.op == "attention_rows" and not case.real]
NORMS_AND_ROPE = ("q_norm", "k_norm", "rope_theta", "rope_dim", "rope_sections")


def row_by_row(made: dict[str, Any], i: int, first: int, count: int) -> tuple[mx.array, mx.array, mx.array]:
    """Sequence i of the arguments of attention_rows by the ops for one: y [count, 1, ..], keys, values."""
    keys, values, ys = made["keys"][i], made["values"][i], []
    for t in range(count):
        row = made["projection"][first + t : first + t + 1]
        positions = made["positions"]
        offset = made["offsets"][i] + t
        q, keys, values = ops.attention_prepare(
            row,
            keys=keys,
            values=values,
            offset=offset,
            positions=None if positions is None else positions[:, None, first + t : first + t + 1],
            **{name: made[name] for name in NORMS_AND_ROPE},
        )
        ys.append(ops.attention(q, row, keys, values, length=offset + 1, scale=made["scale"]))
    return mx.concatenate(ys), keys, values


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_a_row_has_the_bits_that_it_has_alone_whatever_the_company(case: Case, dtype: mx.Dtype) -> None:
    made = case.arguments(dtype)
    y, keys, values = ops.attention_rows(**made)
    first = 0
    for i, count in enumerate(made["counts"] or [1] * len(keys)):
        expected = row_by_row(made, i, first, count)
        found = y[first : first + count], keys[i], values[i]
        assert all(mx.array_equal(a, b) for a, b in zip(found, expected, strict=True)), i
        first += count


def test_more_sequences_than_a_call_of_the_kernel_takes() -> None:
    made = next(case for case in ROWS if case.name.startswith("9h")).arguments(mx.bfloat16)
    twice = {name: 2 * made[name] for name in ("keys", "values", "offsets")}
    many = {**made, **twice, "projection": mx.tile(made["projection"], (2, 1, 1))}
    found, expected = ops.attention_rows(**many), ops.attention_rows(**made)
    assert mx.array_equal(found[0], mx.tile(expected[0], (2, 1, 1)))
    for caches, of_nine in zip(found[1:], expected[1:], strict=True):
        assert all(mx.array_equal(a, b) for a, b in zip(caches, 2 * of_nine, strict=True))


def test_each_sequence_whose_cache_nobody_holds_is_updated_in_place() -> None:
    """While the step before is in flight too; one that is held is copied, and stays as it was."""
    made = next(case for case in ROWS if case.name.startswith("mixed-h2")).arguments(mx.bfloat16)
    mx.eval(made["projection"], made["keys"], made["values"])
    held = made["keys"][2]
    before = held + 0
    mx.eval(before)
    places = [np.array(array, copy=False).ctypes.data for array in made["keys"] + made["values"]]
    for _ in range(3):
        y, made["keys"], made["values"] = ops.attention_rows(**made)
        mx.async_eval(y)
    mx.eval(made["keys"], made["values"])
    found = [np.array(array, copy=False).ctypes.data for array in made["keys"] + made["values"]]
    assert [at == was for at, was in zip(found, places, strict=True)] == [i != 2 for i in range(8)]
    assert mx.array_equal(held, before)


def test_lists_of_sequences_are_checked() -> None:
    made = next(case for case in ROWS if case.name.startswith("mixed-h6")).arguments(mx.float32)
    keys = made["keys"]
    for change, error in (
        ({"counts": [1, 1, 1]}, "attention_rows: counts: expected tokens of all 9 rows, found 3"),
        ({"counts": [9, 0, 0]}, "attention_rows: counts: expected a positive number"),
        ({"values": keys[:2]}, "attention_rows: values: expected one for each of 3 .* found 2"),
        ({"offsets": [300]}, "attention_rows: offsets: expected one for each of 3"),
        ({"offsets": [301, 0, 60]}, r"attention_rows: offsets: expected 0 to 300 .*, found 301"),
        ({"keys": [keys[0], keys[1].astype(mx.float16), keys[2]]}, "attention_rows: keys: expected float32"),
        ({"keys": [keys[0], keys[1], keys[2][:, :1]]}, r"attention_rows: values: expected shape \[1, 1,"),
        ({"positions": mx.zeros((3, 8), mx.int32)}, r"attention_rows: positions: expected shape \[3, 9\]"),
    ):
        with pytest.raises(ValueError, match=error):
            ops.attention_rows(**{**made, **change})
