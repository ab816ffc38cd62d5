"""Pictures to patches: what Hugging Face's processors (torchvision) make of them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_delta.errors import ArgumentError, ConfigError, MissingPackageError
from mlx_delta.vision import picture as picture_module
from mlx_delta.vision.patches import picture_patches, video_patches
from mlx_delta.vision.picture import decoded
from mlx_delta.vision.resize import picture_size, resized, video_size
from mlx_delta.vision.settings import PictureSettings, VideoSettings, read_settings
from support import GOLDEN

DATA = GOLDEN / "vision"
EXPECTED: dict[str, Any] = json.loads((DATA / "vision.json").read_text())
ARRAYS = mx.load(str(DATA / "vision.safetensors"))
SETTINGS = PictureSettings()


def content(name: str) -> bytes:
    return (DATA / name).read_bytes()


def sha256(a: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()


@pytest.mark.parametrize("expected", EXPECTED["pictures"], ids=lambda entry: entry["file"])
def test_pictures_have_the_bits_of_torchvision(expected: dict[str, Any]) -> None:
    """Pillow's 16 bits are clipped there, nearly all to white; that one is of our own making."""
    name = expected["file"]
    rgb = decoded(content(name), name)
    if name != "gray16.png":
        assert sha256(rgb) == expected["decoded_sha256"]
    if "error" in expected:
        with pytest.raises(
            ArgumentError, match=f"{name}: expected sides that differ by at most 200 times, found 300 x"
        ):
            picture_patches(rgb, SETTINGS, name)
        return
    patches = picture_patches(rgb, SETTINGS, name)
    grid = patches.grid
    assert [grid.frames, grid.height, grid.width] == expected["grid_thw"]
    assert grid.tokens == expected["tokens"]
    if name != "gray16.png":
        assert sha256(resized(rgb, 16 * grid.height, 16 * grid.width)) == expected["resized_sha256"]
    if "row" in expected:
        assert np.array_equal(patches.rows[expected["row"]], np.array(ARRAYS[f"{name.split('.')[0]}.row"]))


@pytest.mark.parametrize("expected", EXPECTED["videos"], ids=lambda entry: entry["name"])
def test_videos_too(expected: dict[str, Any]) -> None:
    name, settings = expected["name"], VideoSettings()
    strip = decoded(content(f"video_{name}.png"), name)
    frames = strip.reshape(expected["frames"], *expected["frame_hw"], 3)[expected["sampled_indices"]]
    patches = video_patches(len(frames), frames, settings, name)
    assert [patches.grid.frames, patches.grid.height, patches.grid.width] == expected["grid_thw"]
    assert np.array_equal(patches.rows[expected["rows"]], np.array(ARRAYS[f"{name}.rows"]))


def test_sizes() -> None:
    for entry in EXPECTED["smart_resize_image"]:
        if isinstance(entry["resized_hw"], list):
            assert list(picture_size(*entry["hw"], SETTINGS, "x")) == entry["resized_hw"], entry
        else:
            with pytest.raises(ArgumentError):
                picture_size(*entry["hw"], SETTINGS, "x")
    for entry in EXPECTED["smart_resize_video"]:
        if isinstance(entry["resized_hw"], list):
            found = video_size(entry["frames"], *entry["hw"], VideoSettings(), "x")
            assert list(found) == entry["resized_hw"], entry


@pytest.mark.parametrize(("size", "new"), [((300, 200), (37, 29)), ((7, 1000), (64, 32)), ((40, 3), (500, 320))])
def test_strong_reductions_are_exact_too(size: tuple[int, int], new: tuple[int, int]) -> None:
    """Sums that float32 would round; against the definition in integers."""
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = resized(rgb, *new)
    wide = _plain(rgb.transpose(1, 0, 2), new[1]).transpose(1, 0, 2)
    assert np.array_equal(found, _plain(wide, new[0]))


def _plain(a: np.ndarray, count: int) -> np.ndarray:
    scale = len(a) / count
    stretch = max(scale, 1)
    rows, largest = [], 0.0
    for i in range(count):
        center = scale * (i + 0.5)
        low, high = max(int(center - 2 * stretch + 0.5), 0), min(int(center + 2 * stretch + 0.5), len(a))
        x = np.abs((np.arange(low, high) - center + 0.5) / stretch)
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0))
        weights = weights * (1 / weights.sum())
        rows.append((low, weights))
        largest = max(largest, weights.max())
    bits = next((bits for bits in range(22) if int(0.5 + largest * 2 ** (bits + 1)) >= 1 << 15), 22)
    out = []
    for low, weights in rows:
        whole = np.array([int(w * 2**bits + (0.5 if w >= 0 else -0.5)) for w in weights])
        total = np.tensordot(whole, a[low : low + len(whole)].astype(np.int64), 1)
        out.append(np.clip((total + (1 << bits - 1)) >> bits, 0, 255))
    return np.array(out, np.uint8)


def test_16_bits_are_shifted() -> None:
    values = np.array([[0, 255, 256, 65535, 32768]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert decoded(file.getvalue(), "x")[0].tolist() == [[v >> 8] * 3 for v in values[0].tolist()]


def test_pillow_images_and_the_first_frame() -> None:
    red, blue = (Image.new("RGBA", (4, 3), color) for color in ((255, 0, 0, 0), (0, 0, 255, 255)))
    assert decoded(red, "x").tolist() == [[[255] * 3] * 4] * 3  # all transparent: the white it lies on
    assert decoded(blue, "x")[0, 0].tolist() == [0, 0, 255]
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decoded(file.getvalue(), "x")[0, 0].tolist() == [255, 0, 0]


def _png(width: int, height: int) -> bytes:
    """A small file that says it is large."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "expected a picture .*, found no bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected a picture .*, found 47 bytes that begin with"),
        (content("odd.png")[:2000], "expected a whole picture, found a damaged one"),
        (content("exif.jpg")[:900], "expected a whole picture, found a damaged one"),
        (_png(50, 50), "expected a whole picture, found a damaged one"),
        (_png(10_000, 10_000), "expected a picture of 1 to 89478485 pixels, found 10000 x 10000"),
        (_png(60_000, 60_000), "expected a picture of at most 89478485 pixels, found more"),
    ],
    ids=["empty", "eps", "cut png", "cut jpeg", "short", "large", "bomb"],
)
def test_what_is_refused(source: bytes, message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^here: {message}"):
        decoded(source, "here")


def test_a_large_file_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "MOST_BYTES", 100)
    with pytest.raises(ArgumentError, match=r"here: expected a picture of at most 100 bytes, found 4656"):
        decoded(content("odd.png"), "here")


def test_pillow_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingPackageError, match=r"here: expected Pillow, .* pip install 'mlx-delta\[vision\]'"):
        decoded(b"", "here")


def test_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == (PictureSettings(), VideoSettings())  # the official ones
    nested = {"image_processor": {"size": {"shortest_edge": 1024, "longest_edge": 4096}}, "video_processor": {"fps": 1}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_settings(tmp_path) == (PictureSettings(1024, 4096), VideoSettings(fps=1))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"patch_size": 14, "image_mean": [0.1, 0.2, 0.3]}))
    assert read_settings(tmp_path)[0] == PictureSettings(patch=14, mean=(0.1, 0.2, 0.3))
    for wrong in ({"patch_size": 0}, {"image_std": [0, 1, 1]}, {"size": {"shortest_edge": 9, "longest_edge": 1}}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match=r"preprocessor_config.json: .*expected .*, found"):
            read_settings(tmp_path)
