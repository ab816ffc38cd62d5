"""A video to the frames that are looked at, and when each was. A file is read by PyAV, the extra ``video``.

Source: ``sample_frames`` of video_processing_qwen3_vl.py, ``_calculate_timestamps`` of processing_qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_delta.errors import ArgumentError, MissingPackageError
from mlx_delta.vision.picture import MOST_PIXELS
from mlx_delta.vision.settings import VideoSettings

UNKNOWN_FPS = 24.0  # what Hugging Face's processor takes frames without a word on their rate for
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2"})


@dataclass(frozen=True)
class Frames:
    """How many there are, how many a second, and a function that decodes those of some numbers, ascending, in turn."""

    count: int
    fps: float
    decode: Callable[[Sequence[int]], Iterator[np.ndarray]]


def sampled(frames: Frames, settings: VideoSettings, where: str) -> list[int]:
    """The numbers of the frames to look at: ``fps`` a second, evenly from the first to the last.

    Raises: ArgumentError naming ``where`` for fewer than a patch has, or for no rate.
    """
    if not 0 < frames.fps < float("inf"):
        raise ArgumentError(f"{where}: expected a number of frames a second above 0, found {frames.fps!r}")
    if frames.count < settings.frames:
        raise ArgumentError(f"{where}: expected at least {settings.frames} frames, found {frames.count}")
    wanted = int(frames.count / frames.fps * settings.fps)
    wanted = min(max(wanted, settings.least_frames), settings.most_frames, frames.count)
    return [int(i) for i in np.linspace(0, frames.count - 1, wanted).round()]


def timestamps(indices: Sequence[int], fps: float, together: int) -> list[float]:
    """Seconds of each ``together`` frames: the middle between the first and the last of them."""
    indices = [*indices, *[indices[-1]] * (-len(indices) % together)]
    return [(indices[i] / fps + indices[i + together - 1] / fps) / 2 for i in range(0, len(indices), together)]


def pictures_in(directory: Path, where: str) -> list[Path]:
    """A directory's pictures, by name."""
    found = sorted(file for file in directory.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ArgumentError(f"{where}: expected a directory of pictures, found none in {directory}")
    return found


def file_frames(file: Path, where: str) -> Frames:
    """Those of a video file. Frames that are not wanted are decoded and let go.

    Raises: ArgumentError naming ``where`` for what is no video or is damaged; MissingPackageError without PyAV.
    """
    try:
        import av
    except ImportError:
        raise MissingPackageError(f"{where}: expected PyAV, found it missing: pip install 'mlx-delta[video]'") from None

    def all_frames() -> Iterator[np.ndarray]:
        with _named(file, where), av.open(str(file)) as container:
            for frame in container.decode(video=0):
                if frame.width * frame.height > MOST_PIXELS:
                    raise ArgumentError(
                        f"{where}: expected at most {MOST_PIXELS} pixels a frame, found {frame.width} x {frame.height}"
                    )
                yield frame.to_ndarray(format="rgb24")

    def decode(indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = iter(indices)
        at = next(wanted, None)
        for i, frame in enumerate(all_frames()):
            while at == i:
                yield frame
                at = next(wanted, None)
            if at is None:
                return
        raise ArgumentError(f"{where}: expected {indices[-1] + 1} frames, found fewer in {file}")

    with _named(file, where), av.open(str(file)) as container:
        if not container.streams.video:
            raise ArgumentError(f"{where}: expected a video, found none in {file}")
        stream = container.streams.video[0]
        rate, count = stream.average_rate, stream.frames
        if not count:  # some containers do not say
            count = sum(1 for packet in container.demux(stream) if packet.size)
    return Frames(count, float(rate or UNKNOWN_FPS), decode)


@contextmanager
def _named(file: Path, where: str) -> Iterator[None]:
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:  # whatever FFmpeg has to say
        raise ArgumentError(f"{where}: expected a video, found {file}: {error!s:.80}") from error
