"""A picture file, or a Pillow image, to RGB; whatever is wrong with it is one error. Pillow is the extra ``vision``.

Turned as its EXIF says, transparent parts on white, an animation's first frame, 16 bits a channel shifted to 8.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mlx_delta.errors import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# What clients send and cameras write. Of the others that Pillow knows, one runs a program (EPS), some have no mark at
# their beginning, so that anything might be taken for them.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MOST_BYTES = 128 << 20  # of a file
MOST_PIXELS = 89_478_485  # as decoded, a quarter of a GB of RGB: where Pillow begins to warn


def decoded(source: bytes | Image, where: str) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a file's content, or of a Pillow image.

    Raises: ArgumentError naming ``where`` for what is no picture, is damaged, or is larger than the bounds above;
    MissingPackageError without Pillow.
    """
    return _taken(source, where, _rgb)


def extent(source: bytes | Image, where: str) -> tuple[int, int]:
    """(height, width) as the file's header says, without decoding it, and before EXIF turns it.

    Raises: as ``decoded``, but for damage behind the header.
    """
    return _taken(source, where, _extent)


def _taken(source: bytes | Image, where: str, take: Callable[[Image, str], T]) -> T:
    try:
        from PIL import Image
    except ImportError:
        raise MissingPackageError(
            f"{where}: expected Pillow, found it missing: pip install 'mlx-delta[vision]'"
        ) from None
    try:
        if isinstance(source, Image.Image):
            return take(source, where)
        if len(source) > MOST_BYTES:
            raise ArgumentError(f"{where}: expected a picture of at most {MOST_BYTES} bytes, found {len(source)}")
        Image.init()  # a build of Pillow may lack one
        with Image.open(io.BytesIO(source), formats=[form for form in FORMATS if form in Image.OPEN]) as image:
            return take(image, where)
    except ArgumentError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ArgumentError(f"{where}: expected a picture of at most {MOST_PIXELS} pixels, found more") from error
    except Image.UnidentifiedImageError as error:
        raise ArgumentError(f"{where}: expected a picture ({', '.join(FORMATS)}), found {_shown(source)}") from error
    except Exception as error:  # whatever its decoders raise for damaged files: OSError, SyntaxError, struct.error, ..
        raise ArgumentError(f"{where}: expected a whole picture, found a damaged one: {error!s:.80}") from error


def _extent(image: Image, where: str) -> tuple[int, int]:
    width, height = image.size
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise ArgumentError(f"{where}: expected a picture of 1 to {MOST_PIXELS} pixels, found {width} x {height}")
    return height, width


def _rgb(image: Image, where: str) -> np.ndarray:
    from PIL import Image as images
    from PIL import ImageOps

    _extent(image, where)
    image.load()
    with suppress(Exception):  # damaged EXIF beside good pixels: it is shown as it lies
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.repeat(_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def _eight_bits(gray: np.ndarray) -> np.ndarray:
    """Of 16 bits a pixel: Pillow's own conversion clips, and nearly all is white."""
    wide = gray.astype(np.int64)
    return np.clip(wide >> 8 if wide.max(initial=0) > 255 else wide, 0, 255).astype(np.uint8)


def _shown(source: Any) -> str:
    return f"{len(source)} bytes that begin with {bytes(source[:12])!r}" if len(source) else "no bytes"
