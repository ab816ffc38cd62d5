"""A picture, or a video's frames, as the rows that the vision tower reads.

A row is [channel, frame, row, column] of a patch, uint8. Rows go frame pair by frame pair, block of merged patches by
block, and row by row within a block. A picture is its own second frame; an odd last frame is repeated.
Source: ``patchify`` of image_processing_qwen2_vl.py and video_processing_qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlx_delta.errors import ArgumentError
from mlx_delta.vision.resize import picture_size, resized, video_size
from mlx_delta.vision.settings import PictureSettings


@dataclass(frozen=True)
class Grid:
    """How many patches: ``frames`` (pairs of them) x ``height`` x ``width``; merge x merge of a frame are a token."""

    frames: int
    height: int
    width: int
    merge: int = 2

    @property
    def patches(self) -> int:
        return self.frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width // self.merge**2

    @property
    def tokens(self) -> int:
        return self.frames * self.tokens_per_frame


@dataclass(frozen=True)
class Patches:
    """rows: uint8 [n, 3 * frames * patch * patch]. settings: what they were made with, and values are made with."""

    grid: Grid
    rows: np.ndarray
    settings: PictureSettings


def picture_patches(picture: np.ndarray, settings: PictureSettings, where: str) -> Patches:
    """Of RGB uint8 [H, W, 3]. Raises: ArgumentError naming ``where`` for sides too unequal."""
    height, width = picture_size(picture.shape[0], picture.shape[1], settings, where)
    return _patches(np.broadcast_to(resized(picture, height, width), (settings.frames, height, width, 3)), settings)


def video_patches(count: int, frames: Iterable[np.ndarray], settings: PictureSettings, where: str) -> Patches:
    """Of ``count`` frames, RGB uint8 [H, W, 3] each, all of one size.

    Raises: ArgumentError naming ``where`` for frames of several sizes, or sides too unequal.
    """
    done: list[np.ndarray] = []
    first = size = None
    for frame in frames:
        first = first or frame.shape
        if frame.shape != first:
            raise ArgumentError(f"{where}: expected frames of one size, found {first[1::-1]} and {frame.shape[1::-1]}")
        size = size or video_size(count, frame.shape[0], frame.shape[1], settings, where)
        done.append(resized(frame, *size))
    done += [done[-1]] * (-len(done) % settings.frames)
    return _patches(np.stack(done), settings)


def _patches(frames: np.ndarray, settings: PictureSettings) -> Patches:
    """frames: uint8 [n, height, width, 3], n a multiple of the frames of a patch."""
    side, merge, pair = settings.patch, settings.merge, settings.frames
    count, height, width, channels = frames.shape
    grid = Grid(count // pair, height // side, width // side, merge)
    blocks = (grid.frames, pair, grid.height // merge, merge, side, grid.width // merge, merge, side, channels)
    ordered = frames.reshape(blocks).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return Patches(grid, ordered.reshape(grid.patches, channels * pair * side * side), settings)
