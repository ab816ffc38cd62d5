"""Cases of sampling that hold for the op on every device, and for its Metal kernels on a CPU."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np


class Choose(Protocol):
    """``ops.sample``, its tokens as a list."""

    def __call__(self, logits: mx.array, random: mx.array | None, **settings: float) -> list[int]: ...


def check_nothing_to_choose_from(choose: Choose) -> None:
    """Rows of -inf give token 0, those with a NaN -1, in whichever block; infinity is the likeliest."""
    rows = np.full((5, 2100), -np.inf, dtype=np.float32)
    rows[1] = np.nan
    rows[2, 30] = np.inf
    rows[3:] = 1.0
    rows[3, 7] = rows[4, 2099] = np.nan
    random = mx.array(np.full(5, 2**63, dtype=np.uint64))
    for settings in ({}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}):
        assert choose(mx.array(rows), random, **settings) == [0, -1, 30, -1, -1]
    assert choose(mx.array(rows), None) == [0, -1, 30, -1, -1]
