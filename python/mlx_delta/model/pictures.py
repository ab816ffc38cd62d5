"""What a prompt has beside its ids where it has pictures, as the network takes it; knows nothing of files or towers."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np


class PicturePart(Protocol):
    """positions: int32 [3, T] of all of the prompt's tokens, by time, row and column (M-RoPE)."""

    @property
    def positions(self) -> np.ndarray: ...

    def rows(self, start: int, end: int) -> tuple[mx.array, mx.array] | None:
        """What is read in the places of the tokens ``start`` to ``end``: their indices, less start, and the rows
        [n, hidden]; None where all of them are text."""
