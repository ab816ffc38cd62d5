"""Damaged and odd picture files against the reader: each is read or refused with one error that names it,
within a bound of memory. Random, but the same files every time.

    python -m bench.odd_pictures [FILES]
"""

from __future__ import annotations

import io
import random
import resource
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mlx_delta.errors import ArgumentError
from mlx_delta.vision.patches import picture_patches
from mlx_delta.vision.picture import decoded
from mlx_delta.vision.settings import PictureSettings

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "YCbCr")
_MEMORY = 3 << 30  # address space, with what Python and MLX have


def odd_files(count: int) -> Iterator[tuple[str, bytes]]:
    """(what was done to it, content) in turn."""
    rng = random.Random(22)
    good = list(_good_files(rng))
    ways = {
        "cut": lambda b: b[: rng.randrange(1, len(b))],
        "bytes changed": lambda b: _changed(b, rng, rng.randrange(1, 20)),
        "head changed": lambda b: _changed(b[:64], rng, 4) + b[64:],
        "zeros inside": lambda b: b[: len(b) // 3] + bytes(len(b) // 3) + b[2 * (len(b) // 3) :],
        "twice": lambda b: b + b,
        "as another": lambda b: rng.choice(good)[1][:16] + b[16:],
        "as it is": lambda b: b,
    }
    yield from _made_up()
    for i in range(count - len(list(_made_up()))):
        form, content = good[rng.randrange(len(good))]
        way = list(ways)[i % len(ways)]
        yield f"{form}, {way}", ways[way](content)


def _good_files(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    pixels = np.random.default_rng(22)
    for form in _FORMATS:
        for mode in _MODES:
            width, height = rng.randrange(1, 300), rng.randrange(1, 300)
            image = Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
            out = io.BytesIO()
            try:
                image.convert(mode).save(out, form)
            except (OSError, ValueError, KeyError):  # a mode that the format, or this build of Pillow, has not
                continue
            yield form, out.getvalue()


def _made_up() -> Iterator[tuple[str, bytes]]:
    for width, height in (
        (1, 1),
        (1, 300),
        (30_000, 30_000),
        (65_535, 65_535),
        (2**31 - 1, 1),
        (0, 5),
        (12_000, 9_000),
    ):
        yield f"PNG that says {width} x {height}", _png(width, height)
    yield "nothing", b""
    yield "text", b"hello, world\n" * 50
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 900 900\nquit\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "ZIP", b"PK\x03\x04" + bytes(200)
    yield "text chunk of 100 MB", _png(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))))


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    body = (len(d).to_bytes(4, "big") + kind + d + zlib.crc32(kind + d).to_bytes(4, "big") for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _changed(content: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def main(count: int) -> int:
    """The number of files that were neither read nor refused."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    outcomes: Counter[str] = Counter()
    longest, wrong = 0.0, 0
    for what, content in odd_files(count):
        begin = time.perf_counter()
        try:
            rgb = decoded(content, "picture")
            picture_patches(rgb, PictureSettings(most_pixels=1 << 20), "picture")
            outcome = "read"
        except ArgumentError as error:
            outcome = str(error).partition(", found")[0].removeprefix("picture: expected ")
            outcome = "refused: not " + outcome.partition(" (")[0]
            if "\n" in str(error) or len(str(error)) > 300:
                wrong += 1
                print(f"{what}: {error}")
        except BaseException as error:
            outcome, wrong = f"{type(error).__name__}", wrong + 1
            print(f"{what}: {error!r:.200}")
        outcomes[outcome] += 1
        longest = max(longest, time.perf_counter() - begin)
    for outcome, times in outcomes.most_common():
        print(f"{times:5}  {outcome}")
    print(f"longest {longest:.2f} s, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return wrong


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200) > 0)
