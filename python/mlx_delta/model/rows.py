"""A layer over several sequences at once: matrices see the tokens of all, mixers each sequence over its own states.

Tokens go by rows, as they are decoded, or by tiles, as prompts are: the order in which products are added, and with it
the bits. By rows a token has the same bits whatever the others are, so that many of one sequence have those that they
have one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from mlx_delta._core import DECODE_TOKENS
from mlx_delta.model.cache import Cache, DeltaState, LayerState
from mlx_delta.model.layers import AttentionLayer, DeltaLayer, Layer, Window
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
        together = None if row_projection is None else self._mixed_together(layer, row_projection, states)
        row_parts: list[mx.array] = [] if together is None else [together]
        tile_parts: list[mx.array] = []
        for span, state, window in zip(self.spans, states, self.windows, strict=True):
            if span.tiles:
                assert tile_projection is not None
                part = tile_projection[:, span.first : span.first + span.count]
                tile_parts.append(layer.mix_projected(part, state, window))
            elif together is None:
                assert row_projection is not None
                row_parts += _mixed_rows(layer, row_projection, span, state, window)
        return _joined(row_parts, 0) if row_parts else None, _joined(tile_parts, 1) if tile_parts else None

    def finished(self, layer: Layer, mixed: Tokens, x: Tokens) -> Tokens:
        """The second half: what was ``mixed`` joins the residuals, and what follows."""
        (by_rows, by_tiles), (rows, tiles) = mixed, x
        if rows is not None and by_rows is not None:
            rows = _by(_most_rows(), layer.finish, by_rows, rows)
        return rows, None if tiles is None or by_tiles is None else layer.finish(by_tiles, tiles)

    def _mixed_together(self, layer: Layer, projection: mx.array, states: Sequence[LayerState]) -> mx.array | None:
        """What the mixer gives of all rows at once; None where it has to take them span by span."""
        if not isinstance(layer, DeltaLayer) or not self._apart:
            return None
        of_rows = [(span, state) for span, state in zip(self.spans, states, strict=True) if not span.tiles]
        delta_states = [state for _, state in of_rows if isinstance(state, DeltaState)]
        return layer.mix_rows(projection, delta_states, [span.count for span, _ in of_rows])

    @cached_property
    def _apart(self) -> bool:
        """Whether no two spans are of one sequence, and those of rows are no longer than what decodes."""
        short = all(span.tiles or span.count <= DECODE_TOKENS for span in self.spans)
        return short and len({id(span.cache) for span in self.spans}) == len(self.spans)


def _mixed_rows(
    layer: Layer, projection: mx.array, span: Span, state: LayerState, window: Window
) -> Iterator[mx.array]:
    # On a GPU MLX's kernels would multiply more rows, and attention's stretches depend on the number of tokens.
    gpu = mx.default_device().type == mx.DeviceType.gpu
    at_once = 1 if gpu and isinstance(layer, AttentionLayer) else DECODE_TOKENS
    last = span.first + span.count
    for i in range(span.first, last, at_once):
        part = projection[i : min(i + at_once, last)]
        count, before = part.shape[0], i - span.first
        of = window if count == span.count else _part(window, before, count)
        if count == 1:
            yield layer.mix_projected(part, state, of)
        else:
            yield layer.mix_projected(part.reshape(1, count, -1), state, of).reshape(count, 1, -1)


def _most_rows() -> int | None:
    return DECODE_TOKENS if mx.default_device().type == mx.DeviceType.gpu else None


def _part(window: Window, before: int, count: int) -> Window:
    positions = None if window.positions is None else window.positions[..., before : before + count]
    return Window(window.offset + before, positions=positions)


def _by(most: int | None, product: Callable[..., mx.array], *rows: mx.array) -> mx.array:
    """product(*rows), of at most so many rows at once."""
    count = rows[0].shape[0]
    if most is None or count <= most:
        return product(*rows)
    return mx.concatenate([product(*(x[i : i + most] for x in rows)) for i in range(0, count, most)])


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)
