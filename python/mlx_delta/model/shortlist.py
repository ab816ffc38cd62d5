"""The rows of lm_head that drafts are chosen from: reading all of a large one would cost a sixth of a token for each.

Tokens are numbered in the order in which they were merged, the most frequent of the tokenizer's training text first;
special tokens come last. What these leave out is mostly in the text already: of Chinese or Russian a third to a half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta.ops import Matrix
from mlx_delta.ops.matrix import part, taken

_LARGE_VOCABULARY = 1 << 17  # of which not all rows are read
_FREQUENT, _SPECIAL = 1 << 15, 512
_BLOCK = 32  # rows of a text are filled up to a multiple of so many


@dataclass(frozen=True)
class Shortlist:
    """Rows of lm_head, in parts, and tokens int32 [rows], whose they are.

    first, last: the tokens below and from which on all are there.
    """

    matrices: tuple[Matrix, ...]
    tokens: mx.array
    first: int
    last: int

    @classmethod
    def of(cls, lm_head: Matrix, first: int = _FREQUENT, special: int = _SPECIAL) -> Shortlist:
        """The first rows and the last, where they lie."""
        last = lm_head.rows - special
        tokens = mx.concatenate([mx.arange(first), mx.arange(last, lm_head.rows)]).astype(mx.int32)
        mx.eval(tokens)
        return cls((part(lm_head, 0, first), part(lm_head, last, lm_head.rows)), tokens, first, last)

    def lacks(self, tokens: Iterable[int]) -> list[int]:
        """Those of ``tokens`` that are in neither part, in order, each once."""
        return [token for token in dict.fromkeys(tokens) if self.first <= token < self.last]

    def with_rows(self, lm_head: Matrix, tokens: Sequence[int]) -> Shortlist:
        """And a copy of these tokens' rows."""
        if not tokens:
            return self
        ids = mx.array([*tokens, *[tokens[0]] * (-len(tokens) % _BLOCK)], dtype=mx.int32)
        all_tokens = mx.concatenate([self.tokens, ids])
        mx.eval(all_tokens)
        return Shortlist((*self.matrices[:2], taken(lm_head, ids)), all_tokens, self.first, self.last)


def shortlist(lm_head: Matrix) -> Shortlist | None:
    """None: all rows are few enough."""
    return None if lm_head.rows < _LARGE_VOCABULARY else Shortlist.of(lm_head)
