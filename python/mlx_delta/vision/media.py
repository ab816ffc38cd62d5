"""What a message shows, however it was given, as something with a grid of patches and a digest of its content."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_delta.errors import ArgumentError
from mlx_delta.paths import expanded
from mlx_delta.vision.patches import Grid, Patches, picture_patches, video_patches
from mlx_delta.vision.picture import MOST_BYTES, decoded, extent
from mlx_delta.vision.resize import picture_size
from mlx_delta.vision.settings import PictureSettings, VideoSettings
from mlx_delta.vision.video import UNKNOWN_FPS, Frames, file_frames, pictures_in, sampled, timestamps

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True)
class Shown:
    """A picture or video of a message, not opened yet. kind: "image" or "video". where: its place, for errors.

    value: a picture: path, bytes, Pillow image or data: URL; a video: a list of pictures, a directory of them, or a
    file. fps: of the frames; None: not said.
    """

    kind: str
    value: Any
    where: str
    fps: float | None = None


@dataclass
class Medium:
    """An opened one. digest: of its content. patches(): decoded again where they were let go.

    timestamps: of a video, seconds of each frame of its grid.
    """

    kind: str
    digest: bytes
    grid: Grid
    timestamps: list[float] = field(default_factory=list)
    _patches: Patches | None = None
    _load: Callable[[], Patches] | None = None

    def patches(self) -> Patches:
        patches = self._patches  # which another thread may let go
        if patches is None:
            assert self._load is not None
            return self._load()
        return patches

    def release(self) -> None:
        """Let its patches go: they have been looked at, or will not be soon."""
        self._patches = None


def opened(
    shown: Shown, pictures: PictureSettings, videos: VideoSettings, known: Callable[[bytes], Grid | None]
) -> Medium:
    """Decoded, unless ``known`` has the grid of its digest.

    Raises: ArgumentError naming the place: what was expected, what was found; MissingPackageError.
    """
    if shown.kind == "video":
        return _opened_video(shown, videos, known)
    source = picture_source(shown.value, shown.where)
    digest = hashlib.sha256(b"image" + _identity(source)).digest()
    return _medium(shown.kind, digest, known, lambda: picture_patches(_rgb(source, shown.where), pictures, shown.where))


def picture_tokens(shown: Shown, settings: PictureSettings) -> int:
    """How many tokens a picture will take, by its header alone. Raises: as ``opened``."""
    source = picture_source(shown.value, shown.where)
    height, width = extent(source, shown.where) if isinstance(source, bytes) else source.shape[:2]
    height, width = picture_size(height, width, settings, shown.where)
    return height * width // settings.factor**2


def _opened_video(shown: Shown, settings: VideoSettings, known: Callable[[bytes], Grid | None]) -> Medium:
    where, value = shown.where, shown.value
    digest = hashlib.sha256(b"video")
    if isinstance(value, str | Path):
        path = _path(value, where)
        if not path.is_dir():
            _check_file(path, where, most=None)
            frames = file_frames(path, where)
            stat = path.stat()
            digest.update(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode())
            return _sampled(frames, digest, shown, settings, known)
        value = pictures_in(path, where)
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"{where}: expected frames, a directory of them or a file, found {type(value).__name__}")
    fps = UNKNOWN_FPS if shown.fps is None else shown.fps
    if isinstance(fps, bool) or not isinstance(fps, int | float):
        raise ArgumentError(f"{where}: fps: expected a number, found {fps!r:.80}")
    sources: dict[int, bytes | np.ndarray] = {}

    def decode(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for i in indices:
            yield _rgb(sources[i], f"{where}[{i}]")

    frames = Frames(len(value), float(fps), decode)
    for i in sampled(frames, settings, where):
        sources[i] = picture_source(value[i], f"{where}[{i}]")
        digest.update(hashlib.sha256(_identity(sources[i])).digest())
    return _sampled(frames, digest, shown, settings, known)


def _sampled(
    frames: Frames, digest: Any, shown: Shown, settings: VideoSettings, known: Callable[[bytes], Grid | None]
) -> Medium:
    indices = sampled(frames, settings, shown.where)

    def load() -> Patches:
        return video_patches(len(indices), frames.decode(indices), settings, shown.where)

    medium = _medium(shown.kind, digest.digest(), known, load)
    medium.timestamps = timestamps(indices, frames.fps, settings.frames)
    return medium


def _medium(kind: str, digest: bytes, known: Callable[[bytes], Grid | None], load: Callable[[], Patches]) -> Medium:
    grid = known(digest)
    if grid is not None:
        return Medium(kind, digest, grid, _load=load)
    patches = load()
    return Medium(kind, digest, patches.grid, _patches=patches, _load=load)


def _rgb(source: bytes | np.ndarray, where: str) -> np.ndarray:
    return source if isinstance(source, np.ndarray) else decoded(source, where)


def _identity(source: bytes | np.ndarray) -> bytes:
    """What tells one picture from another: a file's content, or a Pillow image's pixels."""
    return source if isinstance(source, bytes) else repr(source.shape).encode() + source.tobytes()


def picture_source(value: Any, where: str) -> bytes | np.ndarray:
    """A file's content, or the RGB of a Pillow image."""
    if isinstance(value, str) and value[:5].lower() == "data:":
        return data_url(value, where)
    if isinstance(value, str | Path):
        path = _path(value, where)
        _check_file(path, where, most=MOST_BYTES)
        return path.read_bytes()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if all(hasattr(value, name) for name in ("mode", "size", "convert", "getbands")):  # Pillow's, without importing it
        return decoded(value, where)
    raise ArgumentError(f"{where}: expected a path, bytes, a Pillow image or a data: URL, found {type(value).__name__}")


def _path(value: str | Path, where: str) -> Path:
    if isinstance(value, str) and _SCHEME.match(value):
        raise ArgumentError(f"{where}: expected a path or a data: URL, for nothing is fetched, found {value!r:.80}")
    return expanded(value)


def _check_file(path: Path, where: str, most: int | None) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # too long a name, or a null byte in it
        size = None
    if size is None:
        raise ArgumentError(f"{where}: expected a file, found none at {str(path)!r:.80}")
    if most is not None and size > most:
        raise ArgumentError(f"{where}: expected a picture of at most {most} bytes, found {size}")


def data_url(url: str, where: str) -> bytes:
    """The content of data:image/png;base64,....

    Raises: ArgumentError naming ``where`` for what is not of this form, or is larger than a picture may be.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ArgumentError(f"{where}: expected a data: URL in base64, found {url!r:.60}")
    return from_base64(data, where)


def from_base64(data: str, where: str) -> bytes:
    """Raises: as ``data_url``."""
    if len(data) > MOST_BYTES // 3 * 4:
        raise ArgumentError(f"{where}: expected a picture of at most {MOST_BYTES} bytes, found {len(data)} of base64")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArgumentError(f"{where}: expected base64, found {data!r:.40}: {error}") from error
