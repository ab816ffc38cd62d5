"""Random sequences in random schedules: each has the tokens and likelihoods that it has alone."""

from __future__ import annotations

import pytest

from mlx_delta import load_model
from support import TINY
from support.works import Family

SCHEDULES = 4  # of the same sequences, whose runs alone are computed once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_schedules(dtype: str, soak: bool) -> None:
    """1,000 schedules of 250 families of sequences in a soak."""
    model = load_model(TINY, dtype)
    # 5 and 21: a turn that ends where another's goes on, so that the same ids were computed in two ways.
    for seed in range(1000 // SCHEDULES) if soak else (0, 1):
        family = Family(model.network, model.engine.turns, seed)
        for schedule in range(SCHEDULES if soak else 2):
            family.schedule(seed * SCHEDULES + schedule)
