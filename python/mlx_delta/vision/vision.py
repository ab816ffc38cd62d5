"""A checkpoint's vision: its tower, read when the first picture comes, and the features of what it saw last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from mlx_delta.streams import OneStream
from mlx_delta.vision.config import VisionConfig
from mlx_delta.vision.media import Medium, Shown, opened
from mlx_delta.vision.patches import Grid
from mlx_delta.vision.placed import Placeholders
from mlx_delta.vision.settings import PictureSettings, VideoSettings
from mlx_delta.vision.tower import Tower

CACHE_BYTES = 256 << 20  # of features: 30,000 tokens of a model 4,096 wide in bfloat16


@dataclass(frozen=True)
class Sight:
    """What a checkpoint's files say of its vision: the tower, its placeholders, and what it wants to be shown."""

    config: VisionConfig
    tokens: Placeholders
    pictures: PictureSettings
    videos: VideoSettings


class Vision:
    """``open`` what messages show, ``look`` at it. Any number of threads may.

    read: what the files say, load: the tower; both are called when something is shown for the first time, so that a
    checkpoint runs on text whatever it says of a tower.
    cache_bytes: features of the pictures seen last are kept up to so many bytes.
    patches_computed: how many the tower has been given so far.
    """

    def __init__(
        self, read: Callable[[], Sight], load: Callable[[VisionConfig], Tower], *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._read = read
        self.cache_bytes = cache_bytes
        self.patches_computed = 0
        self._load = load
        self._tower: Tower | None = None
        self._looking = threading.Lock()  # one pass at a time: a second one for the same picture finds it known
        self._changing = threading.Lock()
        self._stream = OneStream()
        self._seen: OrderedDict[bytes, tuple[Grid, mx.array]] = OrderedDict()  # by digest, the last used at the end

    @cached_property
    def sight(self) -> Sight:
        """Raises: ConfigError for a tower, or a preprocessor's file, that is not as it should be."""
        return self._read()

    def open(self, shown: Shown) -> Medium:
        """Raises: ArgumentError naming its place; MissingPackageError; ConfigError."""
        return opened(shown, self.sight.pictures, self.sight.videos, self._known_grid)

    def _known_grid(self, digest: bytes) -> Grid | None:
        found = self._find(digest)
        return None if found is None else found[0]

    def _find(self, digest: bytes) -> tuple[Grid, mx.array] | None:
        with self._changing:
            found = self._seen.get(digest)
            if found is not None:
                self._seen.move_to_end(digest)
            return found

    def look(self, media: Sequence[Medium]) -> list[mx.array]:
        """Features [tokens, hidden] of each; those that are not known are computed in one pass.

        Raises: CheckpointError, at the first picture, for a tower that does not fit config.json.
        """
        with self._looking, self._stream():
            found = {medium.digest: self._find(medium.digest) for medium in media}
            missing = {medium.digest: medium for medium in media if found[medium.digest] is None}
            if missing:
                if self._tower is None:
                    self._tower = self._load(self.sight.config)
                patches = [medium.patches() for medium in missing.values()]
                features = self._tower(patches)
                mx.eval(features)  # what is lazy, only this thread could evaluate
                self.patches_computed += sum(each.grid.patches for each in patches)
                first = 0
                for digest, each in zip(missing, patches, strict=True):
                    last = first + each.grid.tokens
                    rows = features[first:last] if len(patches) == 1 else mx.contiguous(features[first:last])
                    mx.eval(rows)
                    found[digest] = (each.grid, rows)
                    first = last
                self._keep({digest: found[digest] for digest in missing})
            return [found[medium.digest][1] for medium in media]  # type: ignore[index]  # none is None

    def _keep(self, new: dict[bytes, tuple[Grid, mx.array] | None]) -> None:
        with self._changing:
            for digest, seen in new.items():
                if seen is not None:
                    self._seen[digest] = seen
            while self._seen and sum(rows.nbytes for _, rows in self._seen.values()) > self.cache_bytes:
                self._seen.popitem(last=False)
