"""The size that a picture or a video gets, and the resize: bit for bit that of Hugging Face's torchvision processors.

Bicubic (a = -0.5) with antialias on uint8: width first, then height, each pass rounded and clipped to uint8, its
weights rounded to as many bits as fit 16 with their sign.
Source: ``smart_resize`` of image_processing_qwen2_vl.py and video_processing_qwen3_vl.py; torchvision's uint8 kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mlx_delta.errors import ArgumentError
from mlx_delta.vision.settings import PictureSettings

_MOST_RATIO = 200
_BLOCK = 64  # output rows a product: few enough that the band of inputs they read stays narrow


def picture_size(height: int, width: int, settings: PictureSettings, where: str) -> tuple[int, int]:
    """(height, width) after the resize: multiples of ``factor`` close to the picture's own, within the pixel bounds.

    Raises: ArgumentError naming ``where`` for sides that differ by more than 200 times.
    """
    return _size(1, 1, height, width, settings, where)


def video_size(frames: int, height: int, width: int, settings: PictureSettings, where: str) -> tuple[int, int]:
    """As ``picture_size``, of each frame: the bounds are those of all frames together."""
    factor = settings.factor
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    return _size(frames, round(frames / settings.frames) * settings.frames, height, width, settings, where)


def _size(frames: int, counted: int, height: int, width: int, settings: PictureSettings, where: str) -> tuple[int, int]:
    """counted: the frames, as a multiple of those of a patch."""
    factor = settings.factor
    if max(height, width) / min(height, width) > _MOST_RATIO:
        raise ArgumentError(
            f"{where}: expected sides that differ by at most {_MOST_RATIO} times, found {width} x {height}"
        )
    new = [round(side / factor) * factor for side in (height, width)]
    pixels = counted * new[0] * new[1]
    if pixels > settings.most_pixels:
        beta = math.sqrt(frames * height * width / settings.most_pixels)
        new = [max(factor, math.floor(side / beta / factor) * factor) for side in (height, width)]
    elif pixels < settings.least_pixels:
        beta = math.sqrt(settings.least_pixels / (frames * height * width))
        new = [math.ceil(side * beta / factor) * factor for side in (height, width)]
    return new[0], new[1]


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]."""
    wide = _pass(picture.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _pass(wide, height)


def _pass(a: np.ndarray, count: int) -> np.ndarray:
    """uint8 [n, .., ..] -> uint8 [count, .., ..]: along the first axis."""
    if a.shape[0] == count:
        return a
    starts, weights, bits = _weights(a.shape[0], count)
    # Sums of products of integers: exact in float32 where they stay below 2^24, and in float64 always.
    exact = np.abs(weights).sum(1).max() * 255 + (1 << bits) < 1 << 24
    dtype = np.float32 if exact else np.float64
    rows = np.ascontiguousarray(a).reshape(a.shape[0], -1)
    out = np.empty((count, rows.shape[1]), np.uint8)
    taps = weights.shape[1]
    for first in range(0, count, _BLOCK):
        block = slice(first, min(first + _BLOCK, count))
        low, high = int(starts[block][0]), min(int(starts[block][-1]) + taps, a.shape[0])
        band = np.zeros((block.stop - first, high - low + taps), dtype)
        columns = starts[block, None] - low + np.arange(taps)
        np.put_along_axis(band, columns, weights[block].astype(dtype), axis=1)
        sums = band[:, : high - low] @ rows[low:high].astype(dtype)
        sums += 1 << (bits - 1)
        sums *= 1 / (1 << bits)
        out[block] = np.clip(np.floor(sums, out=sums), 0, 255, out=sums)
    return out.reshape(count, *a.shape[1:])


@lru_cache(maxsize=64)
def _weights(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First input of each output, its weights int64 [outputs, taps] (0 beyond its last), and their fractional bits."""
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    center = scale * (np.arange(outputs) + 0.5)
    low = np.maximum((center - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center + support + 0.5).astype(np.int64), inputs)
    at = low[:, None] + np.arange(int((high - low).max()))
    x = np.abs((at - center[:, None] + 0.5) / stretch)
    a = -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(at < high[:, None], np.where(x < 1, near, np.where(x < 2, far, 0.0)), 0.0)
    weights *= 1.0 / weights.sum(1, keepdims=True)
    bits, largest = 0, weights.max()
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = weights * (1 << bits)
    return low, np.trunc(np.where(weights < 0, scaled - 0.5, scaled + 0.5)).astype(np.int64), bits
