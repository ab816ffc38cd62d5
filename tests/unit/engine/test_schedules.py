"""Random sequences in random schedules: each has the tokens and likelihoods that it has alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import load_model
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.model.network import Network
from support import TINY
from support.works import Family, Work

SCHEDULES = 4  # of the same sequences, whose runs alone are computed once


@pytest.mark.parametrize(("dtype", "kv_bits"), [("float32", None), ("bfloat16", None), ("bfloat16", 8)])
def test_random_schedules(dtype: str, kv_bits: int | None, soak: bool, tmp_path: Path) -> None:
    """1,000 schedules of 250 families of sequences in a soak; half of them over files of what was kept before."""
    model = load_model(TINY, dtype, kv_bits=kv_bits)
    # 5 and 21: a turn that ends where another's goes on, so that the same ids were computed in two ways.
    for seed in range(1000 // SCHEDULES) if soak else (1,) if kv_bits else (0, 1):
        family = Family(model.network, model.engine.turns, seed)
        for schedule in range(SCHEDULES if soak else 2):
            family.schedule(seed * SCHEDULES + schedule, tmp_path if seed % 2 else None)


@pytest.fixture(scope="module")
def network() -> Network:
    return load_model(TINY, "float32").network


def test_more_than_sixteen_at_once(network: Network) -> None:
    """A pass of 32 rows: each has what it has alone."""
    works = [Work((i, 7, i + 1), SamplingParams(), 3 + i % 3, 99, False, None) for i in range(32)]
    engine = Engine(network, most_rows=32)
    sequences = [work.sequence(network) for work in works]
    for sequence in sequences:
        engine.submit(sequence)
    runs = [list(engine.run(sequence)) for sequence in sequences]
    assert max(len(sequence.tokens) for sequence in sequences) == 5
    assert runs == [work.alone(network) for work in works]


def test_coming_and_going_copies_nothing_of_others(network: Network) -> None:
    """States, keys and values of those that go on stay where they are, whoever joins, forks, leaves or is cancelled."""

    def work(first: int, most: int, length: int = 40) -> TokenSequence:
        return Work((first, *range(length)), SamplingParams(), most, 99, False, None).sequence(network)

    def places(sequence: TokenSequence) -> list[int]:
        mx.eval(sequence.cache.arrays())
        return [np.asarray(a).ctypes.data for a in sequence.cache.arrays()]

    engine = Engine(network, prefix_bytes=1 << 30)
    staying = [work(i, 100) for i in range(4)]
    for sequence in staying:
        engine.submit(sequence)
    while any(len(sequence.tokens) < 3 for sequence in staying):
        engine._events(staying[0])
    before = [places(sequence) for sequence in staying]
    for others in ([work(9, 4, 80)], [work(9, 3, 90)], [work(8, 99), work(7, 4)]):  # the second goes on from the first
        for sequence in others:
            engine.submit(sequence)
        while not others[-1].ended:
            engine._events(staying[0])
        engine.cancel(others[0])
    assert others[0].tokens
    assert [places(sequence) for sequence in staying] == before
