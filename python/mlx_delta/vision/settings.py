"""How a checkpoint wants its pictures and videos: preprocessor_config.json, and what it means where there is none.

Source: the official Qwen3.5 files. Checkpoints saved again by transformers 5 or unsloth may hold only a
processor_config.json with both inside it. ``size.shortest_edge`` and ``longest_edge`` are counts of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_delta.errors import ConfigError
from mlx_delta.json_files import Section, read_json

_MOST_PIXELS = 1 << 30


@dataclass(frozen=True)
class PictureSettings:
    """A picture's sides become multiples of ``factor``, its pixels ``least_pixels`` to ``most_pixels``; patches of
    ``patch`` by ``patch`` pixels and ``frames`` frames; values u8 / 255, less ``mean``, over ``std``, by channel.

    merge: the side of the square of patches that become one token.
    """

    least_pixels: int = 65_536
    most_pixels: int = 16_777_216
    patch: int = 16
    frames: int = 2
    merge: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        return self.patch * self.merge


@dataclass(frozen=True)
class VideoSettings(PictureSettings):
    """Pixels are counted over all frames, of which ``fps`` a second are taken, ``least_frames`` to ``most_frames``."""

    least_pixels: int = 4096
    most_pixels: int = 25_165_824
    fps: float = 2.0
    least_frames: int = 4
    most_frames: int = 768


def read_settings(directory: Path) -> tuple[PictureSettings, VideoSettings]:
    """Those of the checkpoint in ``directory``, the official ones where no file says otherwise.

    Raises: ConfigError naming the file, the key, what was expected and what was found.
    """
    image = _section(directory, "preprocessor_config.json", "image_processor")
    video = _section(directory, "video_preprocessor_config.json", "video_processor")
    default = VideoSettings()
    return PictureSettings(*_common(image, PictureSettings())), VideoSettings(
        *_common(video, default),
        fps=video.number("fps", default.fps, most=1000),
        least_frames=video.integer("min_frames", default.least_frames, most=1 << 16),
        most_frames=video.integer("max_frames", default.most_frames, most=1 << 16),
    )


def _section(directory: Path, name: str, nested: str) -> Section:
    """The file's object, else the part of processor_config.json that has its content, else an empty one."""
    file, whole = directory / name, directory / "processor_config.json"
    if file.is_file():
        return Section(read_json(file, ConfigError), str(file), ConfigError)
    if whole.is_file():
        return Section(read_json(whole, ConfigError), str(whole), ConfigError).section(nested, f"{whole}: {nested}")
    return Section({}, str(file), ConfigError)


def _common(
    section: Section, default: PictureSettings
) -> tuple[int, int, int, int, int, tuple[float, ...], tuple[float, ...]]:
    size = section.section("size", f"{section.origin}: size")
    least = section.integer("min_pixels", size.integer("shortest_edge", default.least_pixels, most=_MOST_PIXELS))
    most = section.integer("max_pixels", size.integer("longest_edge", default.most_pixels, most=_MOST_PIXELS))
    if least > most:
        raise ConfigError(f"{section.origin}: expected at most as many pixels least as most, found {least} and {most}")
    return (
        least,
        most,
        section.integer("patch_size", default.patch, most=256),
        section.integer("temporal_patch_size", default.frames, most=16),
        section.integer("merge_size", default.merge, most=16),
        _channels(section, "image_mean", default.mean),
        _channels(section, "image_std", default.std),
    )


def _channels(section: Section, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = section.values.get(key, default)
    numbers = isinstance(value, list | tuple) and all(type(each) in (int, float) for each in value)
    if not numbers or len(value) != 3 or not all(0 <= each <= 1 for each in value):
        raise section.wrong(key, "three numbers from 0 to 1")
    if key == "image_std" and min(value) <= 0:
        raise section.wrong(key, "three numbers above 0")
    return tuple(map(float, value))
