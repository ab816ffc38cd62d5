"""A layer over several sequences at once: matrices see the tokens of all, mixers each sequence over its own states.

Tokens go by rows, as they are decoded, or by tiles, as prompts are: the order in which products are added, and with it
the bits. By rows a token has the same bits whatever the others are, so that many of one sequence have those that they
have one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta._core import DECODE_TOKENS
from mlx_delta.model.cache import Cache, LayerState
from mlx_delta.model.layers import AttentionLayer, Layer, Window
from mlx_delta.model.pictures import PicturePart


@dataclass(frozen=True)
class Span:
    """The tokens [first, first + count) of a pass, of its rows or of its ``tiles``, go on with ``cache``, of batch 1.

    pictures: of the sequence's prompt, of which these are tokens. Spans of tiles have more than DECODE_TOKENS tokens.
    Those of a sequence come in its order.
    """

    cache: Cache
    first: int
    count: int = 1
    tiles: bool = False
    pictures: PicturePart | None = None


def over_spans(
    layer: Layer,
    rows: mx.array | None,
    tiles: mx.array | None,
    spans: Sequence[Span],
    states: Sequence[LayerState],
    windows: Sequence[Window],
) -> tuple[mx.array | None, mx.array | None]:
    """rows [R, 1, hidden], tiles [1, N, hidden] -> the same. states: the layer's, of each span's cache. windows:
    of each span.

    Every matrix is read once for all rows, and once for all tiles; states are not brought together, so a sequence comes
    and goes without a copy of any other's.
    """
    if tiles is None and len(spans) == 1 and spans[0].count == 1 and rows is not None:
        return layer(rows, states[0], windows[0]), None
    return finished(layer, mixed(layer, rows, tiles, spans, states, windows), rows, tiles)


def mixed(
    layer: Layer,
    rows: mx.array | None,
    tiles: mx.array | None,
    spans: Sequence[Span],
    states: Sequence[LayerState],
    windows: Sequence[Window],
) -> tuple[mx.array | None, mx.array | None]:
    """The first half of ``over_spans``: what the mixer gives."""
    # On a GPU MLX's kernels would multiply more rows, and attention's stretches depend on the number of tokens.
    gpu = mx.default_device().type == mx.DeviceType.gpu
    at_once = 1 if gpu and isinstance(layer, AttentionLayer) else DECODE_TOKENS
    row_projection = None if rows is None else _by(_most_rows(), layer.project, rows)
    tile_projection = None if tiles is None else layer.project(tiles)
    row_parts: list[mx.array] = []
    tile_parts: list[mx.array] = []
    for span, state, window in zip(spans, states, windows, strict=True):
        last = span.first + span.count
        if span.tiles:
            assert tile_projection is not None
            tile_parts.append(layer.mix_projected(tile_projection[:, span.first : last], state, window))
            continue
        assert row_projection is not None
        for i in range(span.first, last, at_once):
            part = row_projection[i : min(i + at_once, last)]
            count, before = part.shape[0], i - span.first
            of = window if count == span.count else _part(window, before, count)
            if count == 1:
                row_parts.append(layer.mix_projected(part, state, of))
            else:
                mixed = layer.mix_projected(part.reshape(1, count, -1), state, of)
                row_parts.append(mixed.reshape(count, 1, -1))
    return _joined(row_parts, 0) if row_parts else None, _joined(tile_parts, 1) if tile_parts else None


def finished(
    layer: Layer, parts: tuple[mx.array | None, mx.array | None], rows: mx.array | None, tiles: mx.array | None
) -> tuple[mx.array | None, mx.array | None]:
    """The second half: what was ``mixed`` joins the residuals, and what follows."""
    by_rows, by_tiles = parts
    if rows is not None and by_rows is not None:
        rows = _by(_most_rows(), layer.finish, by_rows, rows)
    return rows, None if tiles is None or by_tiles is None else layer.finish(by_tiles, tiles)


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
