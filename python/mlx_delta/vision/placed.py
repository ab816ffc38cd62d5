"""A prompt's pictures in their places: placeholders, positions, and the rows that are read instead of embeddings.

Text counts on, on all three axes; a picture, or one frame of a video, takes its start + (0, row, column) of its merged
grid, and what follows goes on at start + the longer side.
Source: ``get_rope_index`` of modeling_qwen3_5.py, ``replace_video_token`` of processing_qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_delta.errors import ArgumentError
from mlx_delta.vision.media import Medium

START, END = "<|vision_start|>", "<|vision_end|>"


@dataclass(frozen=True)
class Placeholders:
    """The tokens that stand for pictures and for videos: their ids, and how templates write them."""

    image: int
    video: int
    image_text: str
    video_text: str

    def encode(self, text: str, media: Sequence[Medium], encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of a rendered prompt, or of its beginning, with as many placeholders as each medium has tokens.

        Raises: ArgumentError where there are placeholders for more than there is.
        """
        images = [medium for medium in media if medium.kind == "image"]
        videos = [medium for medium in media if medium.kind == "video"]
        pieces = text.split(self.video_text)
        _check(len(pieces) - 1, videos, self.video_text, exactly=False)
        for i, medium in enumerate(videos[: len(pieces) - 1]):
            frames = (f"<{seconds:.1f} seconds>{START}{self.video_text}{END}" for seconds in medium.timestamps)
            pieces[i] += "".join(frames)
        ids = encode("".join(pieces))
        counts = {
            self.image: iter([medium.grid.tokens for medium in images]),
            self.video: iter([medium.grid.tokens_per_frame for medium in videos for _ in medium.timestamps]),
        }
        _check(ids.count(self.image), images, self.image_text, exactly=False)
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(counts[token]) if token in counts else 1)
        return expanded

    def check(self, text: str, media: Sequence[Medium]) -> None:
        """Raises: ArgumentError unless the rendered prompt shows each medium once."""
        for kind, token in (("image", self.image_text), ("video", self.video_text)):
            _check(text.count(token), [medium for medium in media if medium.kind == kind], token, exactly=True)


def _check(found: int, media: Sequence[Medium], token: str, *, exactly: bool) -> None:
    if found > len(media) or (exactly and found != len(media)):
        raise ArgumentError(
            f"messages: expected a {token} in the rendered prompt for each of {len(media)}, found {found}"
        )


class PicturesInPlace:
    """ids: the prompt's, expanded. media: what it shows, in order. look: features [tokens, hidden] of some of them."""

    def __init__(
        self,
        ids: Sequence[int],
        media: Sequence[Medium],
        tokens: Placeholders,
        look: Callable[[Sequence[Medium]], list[mx.array]],
    ) -> None:
        self.media = list(media)
        self._look = look
        self._features: dict[int, mx.array] = {}  # by the number of the medium
        self._spans: list[list[tuple[int, int]]] = []  # of each medium: where its frames' tokens are
        at = np.array(ids)
        images, videos = (iter(np.flatnonzero(at == token).tolist()) for token in (tokens.image, tokens.video))
        for medium in media:
            places = images if medium.kind == "image" else videos
            spans = []
            for _ in range(medium.grid.frames):
                taken = [next(places) for _ in range(medium.grid.tokens_per_frame)]
                spans.append((taken[0], taken[-1] + 1))
            self._spans.append(spans)
        self.positions = self._positions(len(ids))
        self.rope_delta = int(self.positions.max()) + 1 - len(ids)

    def _positions(self, count: int) -> np.ndarray:
        positions = np.empty((3, count), np.int32)
        done = following = 0
        places = zip(self.media, self._spans, strict=True)
        frames = sorted(((span, medium.grid) for medium, spans in places for span in spans), key=lambda each: each[0])
        for (start, end), grid in frames:
            positions[:, done:start] = np.arange(following, following + start - done)
            following += start - done
            rows, columns = grid.height // grid.merge, grid.width // grid.merge
            positions[0, start:end] = following
            positions[1:, start:end] = following + np.indices((rows, columns)).reshape(2, -1)
            done, following = end, following + max(rows, columns)
        positions[:, done:] = np.arange(following, following + count - done)
        return positions

    def keys(self, ids: Sequence[int]) -> list[int]:
        """The ids, with what tells a picture from all others in the places of its placeholders."""
        keys = list(ids)
        for medium, spans in zip(self.media, self._spans, strict=True):
            key = -1 - int.from_bytes(medium.digest[:16], "big")
            for start, end in spans:
                keys[start:end] = [key] * (end - start)
        return keys

    def missing(self, start: int = 0) -> list[int]:
        """Numbers of the media that have tokens from ``start`` on and have not been looked at."""
        return [i for i, spans in enumerate(self._spans) if spans[-1][1] > start and i not in self._features]

    def look(self, start: int = 0) -> None:
        """See that all that is shown from token ``start`` on has been looked at, in one pass."""
        look_at([(self, start)], self._look)

    def release(self) -> None:
        """Hold no patches: who looks decodes again."""
        for medium in self.media:
            medium.release()

    def add(self, number: int, features: mx.array) -> None:
        self._features[number] = features
        self.media[number].release()

    @cached_property
    def features(self) -> mx.array:
        """[n, hidden]: the pictures', then the videos'."""
        self.look()
        order = sorted(range(len(self.media)), key=lambda i: self.media[i].kind == "video")
        return mx.concatenate([self._features[i] for i in order])

    def rows(self, start: int, end: int) -> tuple[mx.array, mx.array] | None:
        """See ``model.pictures.PicturePart``."""
        self.look(start)
        index, rows = [], []
        for number, spans in enumerate(self._spans):
            before = 0
            for first, last in spans:
                low, high = max(first, start), min(last, end)
                if low < high:
                    index.append(np.arange(low - start, high - start))
                    rows.append(self._features[number][before + low - first : before + high - first])
                before += last - first
        if not index:
            return None
        return mx.array(np.concatenate(index)), rows[0] if len(rows) == 1 else mx.concatenate(rows)


def look_at(wanted: Sequence[tuple[PicturesInPlace, int]], look: Callable[[Sequence[Medium]], list[mx.array]]) -> None:
    """All that is shown in several prompts, each from a token on, in one pass."""
    missing = [(place, number) for place, start in wanted for number in place.missing(start)]
    if missing:
        found = look([place.media[number] for place, number in missing])
        for (place, number), features in zip(missing, found, strict=True):
            place.add(number, features)
