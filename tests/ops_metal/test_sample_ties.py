"""The Metal kernels of sample where many logits are equal, or infinite; the cases' own: test_kernels.py."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from emulate import run_plan

from mlx_delta import ops
from support.sampling import check_nothing_to_choose_from

SHAPES = {
    "tied": lambda rng, n: rng.normal(0, 2, n).round(),
    "equal": lambda rng, n: np.full(n, 3.25),
    "masked": lambda rng, n: np.where(rng.random(n) < 0.8, -np.inf, rng.normal(0, 2, n)),
    "far": lambda rng, n: -(10.0 ** rng.uniform(-3, 6, n)),
}
FILTERS = [
    {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
    {"top_k": 2000, "top_p": 0.4},
    {"top_p": 0.9, "temperature": 1.5},
    {"top_k": 1},
    {"min_p": 1.0},
]


def chosen(logits: mx.array, random: mx.array | None, **settings: float) -> list[int]:
    found, plan = run_plan([ops.sample(logits, random, **settings)])
    assert len(plan.launches) == 2
    return found[0].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_ties_and_infinities(shape: str) -> None:
    rng = np.random.default_rng(len(shape))
    logits = mx.array(np.stack([SHAPES[shape](rng, 2100) for _ in range(6)]).astype(np.float32))
    random = mx.array(rng.integers(0, 2**64, size=6, dtype=np.uint64))
    for settings in FILTERS:
        assert chosen(logits, random, **settings) == ops.sample_reference(logits, random, **settings).tolist(), settings
    assert chosen(logits, None) == ops.sample_reference(logits).tolist()


def test_every_kept_token_is_drawn() -> None:
    """bfloat16 logits are full of ties: the k kept are those of a stable descending sort, exactly."""
    rng = np.random.default_rng(0)
    logits = mx.array(rng.normal(0, 2, size=(1, 1100)).round(1)).astype(mx.bfloat16)
    order = np.argsort(-np.array(logits.astype(mx.float32))[0], kind="stable")
    points = mx.array(np.linspace(0, 2.0**64, 120, endpoint=False).astype(np.uint64))
    # So hot that all are alike.
    drawn = chosen(mx.broadcast_to(logits, (120, 1100)), points, temperature=1000.0, top_k=40)
    np.testing.assert_array_equal(np.unique(drawn), np.sort(order[:40]))


def test_nothing_to_choose_from() -> None:
    check_nothing_to_choose_from(chosen)
