"""States are updated in place while work is in flight, and never under somebody who still needs them."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_delta import ops
from mlx_delta.bench.cases import CASES, Arguments

ROWS, HEADS, DIM = 8192, 2, 64
LAYERS = 2  # few: of a long token MLX lets only the last part be in flight


def start() -> tuple[list[mx.array], list[mx.array], mx.array]:
    """Key and value caches of LAYERS layers, 2 MB each, and a projection."""
    keys = [mx.zeros((1, HEADS, ROWS, DIM), mx.bfloat16) + i for i in range(LAYERS)]
    values = [mx.zeros((1, HEADS, ROWS, DIM), mx.bfloat16) - i for i in range(LAYERS)]
    x = mx.random.normal((1, 1, 4 * HEADS * DIM), key=mx.random.key(0)).astype(mx.bfloat16)
    mx.eval(keys, values, x)
    return keys, values, x


def step(keys: list[mx.array], values: list[mx.array], x: mx.array, offset: int) -> mx.array:
    """A token through all layers: each appends to its caches and reads them."""
    for i in range(LAYERS):
        q, keys[i], values[i] = ops.attention_prepare(
            x, mx.ones(DIM), mx.ones(DIM), keys[i], values[i],
            offset=offset, rope_theta=1e4, rope_dim=16, rope_sections=(4, 2, 2),
        )  # fmt: skip
        y = ops.attention(q, x, keys[i], values[i], length=ROWS, scale=0.1)
        x = x + mx.mean(y).astype(x.dtype)
    return x


def test_pipelined_tokens_append_to_the_kv_cache_in_place() -> None:
    """Each step is put on the stream while the one before it runs. Copying would double the caches."""
    keys, values, x = start()
    size = sum(a.nbytes for a in keys + values)
    results = []
    for offset in range(40):
        if offset == 8:
            mx.eval(x)
            mx.reset_peak_memory()
            before = mx.get_active_memory()
        x = step(keys, values, x, offset)
        mx.async_eval(x)
        results.append(x)
    mx.eval(x, keys, values)
    assert mx.get_peak_memory() - before < size // 4


@pytest.mark.parametrize("share", ["the array", "a view", "a copy of it to be"])
def test_what_is_held_in_flight_is_not_overwritten(share: str) -> None:
    hold: Callable[[mx.array], mx.array] = {
        "the array": lambda a: a,
        "a view": lambda a: a[:, 1:],
        "a copy of it to be": lambda a: mx.contiguous(a.swapaxes(1, 2)),
    }[share]
    keys, values, x = start()
    held, expected = [], []
    for offset in range(12):
        x = step(keys, values, x, offset)
        mx.async_eval(x)
        if offset % 3 == 0:
            held.append([hold(k) for k in keys])
            mx.async_eval(held[-1])
            # what it has to be: rows up to offset are written, those after it as they were
            expected.append(offset)
    mx.eval(x, held)
    final = [hold(k) for k in keys]
    for snapshot, offset in zip(held, expected, strict=True):
        for i, (then, now) in enumerate(zip(snapshot, final, strict=True)):
            if share == "a copy of it to be":
                then, now = then.swapaxes(1, 2), now.swapaxes(1, 2)
            assert mx.array_equal(then[:, :, : offset + 1], now[:, :, : offset + 1])
            assert mx.all(then[:, :, offset + 1 :] == i), (offset, i)


def mixer(arguments: Arguments) -> mx.array:
    y, arguments["conv_state"], arguments["delta_state"] = ops.delta_mixer(**arguments)
    return y


def test_a_mixer_state_held_in_flight_is_what_it_was() -> None:
    """Against the same steps with a wait after each."""
    case = next(c for c in CASES if c.op == "delta_mixer" and c.real)
    pipelined, waiting = case.arguments(mx.float32), case.arguments(mx.float32)
    snapshots = []
    for i in range(12):
        mx.async_eval(mixer(pipelined))
        if i % 4 == 1:
            snapshots.append(pipelined["delta_state"])
    for i in range(12):
        mx.eval(mixer(waiting), waiting["delta_state"])
        if i % 4 == 1:
            assert mx.array_equal(snapshots.pop(0), waiting["delta_state"])
    assert mx.array_equal(pipelined["delta_state"], waiting["delta_state"])
