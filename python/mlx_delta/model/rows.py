"""A layer over several sequences at once: matrices see the tokens of all, mixers each sequence over its own states.

Tokens go by rows, as they are decoded, or by tiles, as prompts are: the order in which products are added, and with it
the bits. By rows a token has the same bits whatever the others are, so that many of one sequence have those that they
have one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from mlx_delta._core import DECODE_TOKENS
from mlx_delta.model.cache import Cache, LayerState
from mlx_delta.model.layers import Layer, Rows, Window
from mlx_delta.model.pictures import PicturePart


@dataclass(frozen=True)
class Span:
    """The tokens [first, first + count) of a pass, of its rows or of its ``tiles``, go on with ``cache``, of batch 1.

    pictures: of the sequence's prompt, of which these are tokens. Spans of tiles have more than DECODE_TOKENS tokens.
    Those of a sequence come in its order, and all of rows in that of the rows.
    """

    cache: Cache
    first: int
    count: int = 1
    tiles: bool = False
    pictures: PicturePart | None = None


Tokens = tuple[mx.array | None, mx.array | None]  # rows [R, 1, hidden], tiles [1, N, hidden]; None: there are none


@dataclass(frozen=True)
class Pass:
    """A pass of tokens of several sequences through the layers. windows: of each span.

    Every matrix is read once for all rows, and once for all tiles; states are not brought together, so a sequence comes
    and goes without a copy of any other's.
    """

    spans: Sequence[Span]
    windows: Sequence[Window]

    def over(self, layer: Layer, x: Tokens, states: Sequence[LayerState]) -> Tokens:
        """x -> the same, after the layer. states: the layer's, of each span's cache."""
        rows, tiles = x
        if tiles is None and len(self.spans) == 1 and self.spans[0].count == 1 and rows is not None:
            return layer(rows, states[0], self.windows[0]), None
        return self.finished(layer, self.mixed(layer, x, states), x)

    def mixed(self, layer: Layer, x: Tokens, states: Sequence[LayerState]) -> Tokens:
        """The first half of ``over``: what the mixer gives."""
        rows, tiles = x
        row_projection = None if rows is None else _by(_most_rows(), layer.project, rows)
        tile_projection = None if tiles is None else layer.project(tiles)
        row_parts, tile_parts = list[mx.array](), list[mx.array]()
        for run in self._runs:
            of = [states[i] for i in run.spans]
            if run.rows is not None:
                assert row_projection is not None
                row_parts.append(layer.mix_rows(row_projection[run.first : run.last], of, run.rows))
            else:
                assert tile_projection is not None
                window = self.windows[run.spans[0]]
                tile_parts.append(layer.mix_projected(tile_projection[:, run.first : run.last], of[0], window))
        return _joined(row_parts, 0) if row_parts else None, _joined(tile_parts, 1) if tile_parts else None

    def finished(self, layer: Layer, mixed: Tokens, x: Tokens) -> Tokens:
        """The second half: what was ``mixed`` joins the residuals, and what follows."""
        (by_rows, by_tiles), (rows, tiles) = mixed, x
        if rows is not None and by_rows is not None:
            rows = _by(_most_rows(), layer.finish, by_rows, rows)
        return rows, None if tiles is None or by_tiles is None else layer.finish(by_tiles, tiles)

    @cached_property
    def _runs(self) -> list[_Run]:
        """Rows of all sequences at once, where no sequence has two spans, and none more rows than what decodes; else
        span by span, in parts of so many rows."""
        numbered = list(enumerate(self.spans))
        tiles = [_Run([i], span.first, span.first + span.count) for i, span in numbered if span.tiles]
        by_rows = [i for i, span in numbered if not span.tiles]
        short = all(self.spans[i].count <= DECODE_TOKENS for i in by_rows)
        if short and len({id(span.cache) for span in self.spans}) == len(self.spans):
            return [self._run(by_rows), *tiles] if by_rows else tiles
        found = []
        for i, span in numbered:
            if span.tiles:
                found.append(_Run([i], span.first, span.first + span.count))
            else:
                starts = range(0, span.count, DECODE_TOKENS)
                found += [self._run([i], start, min(start + DECODE_TOKENS, span.count)) for start in starts]
        return found

    def _run(self, numbers: Sequence[int], start: int = 0, end: int | None = None) -> _Run:
        """Of these spans, by rows; of one, its tokens [start, end) alone."""
        counts = [(self.spans[i].count if end is None else end) - start for i in numbers]
        offsets = [self.windows[i].offset + start for i in numbers]
        first = self.spans[numbers[0]].first + start
        positions = None
        if any(self.windows[i].positions is not None for i in numbers):
            parts = (
                mx.broadcast_to(mx.arange(offset, offset + count), (3, count))
                if (of := self.windows[i].positions) is None
                else of[:, 0, start : start + count]
                for i, offset, count in zip(numbers, offsets, counts, strict=True)
            )
            positions = mx.concatenate(list(parts), axis=1)
        return _Run(numbers, first, first + sum(counts), Rows(counts, offsets, positions))


@dataclass(frozen=True)
class _Run:
    """Tokens that go through a layer's mixer in one call: the rows [first, last) of several spans, by their numbers; or
    those tiles of one."""

    spans: Sequence[int]
    first: int
    last: int
    rows: Rows | None = None


def _most_rows() -> int | None:
    return DECODE_TOKENS if mx.default_device().type == mx.DeviceType.gpu else None


def _by(most: int | None, product: Callable[..., mx.array], *rows: mx.array) -> mx.array:
    """product(*rows), of at most so many rows at once."""
    count = rows[0].shape[0]
    if most is None or count <= most:
        return product(*rows)
    return mx.concatenate([product(*(x[i : i + most] for x in rows)) for i in range(0, count, most)])


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)
