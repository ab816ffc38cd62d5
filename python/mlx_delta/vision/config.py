"""The vision tower of a config.json. Source: Hugging Face ``Qwen3_5VisionConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from mlx_delta.errors import ConfigError
from mlx_delta.json_files import Section

TOWER = "vision_tower."  # where the canonical names of its tensors begin
_MOST = 1 << 16  # of a dimension
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class VisionConfig:
    """The tower's dimensions, and the ids of the tokens that stand for its output.

    side: of the square grid of learned positions. out_size: the text model's hidden size. image_token, video_token: the
    placeholders' ids.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    heads: int
    patch: int
    frames: int
    merge: int
    side: int
    out_size: int
    channels: int
    rope_theta: float
    image_token: int
    video_token: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def patch_values(self) -> int:
        return self.channels * self.frames * self.patch**2


def vision_config(raw: Mapping[str, Any], hidden_size: int, origin: str = "config.json") -> VisionConfig | None:
    """Of a whole config.json; None where it has no vision tower. hidden_size: the text model's.

    Raises: ConfigError naming ``origin``, the key, what was expected and what was found.
    """
    whole = Section(raw, origin, ConfigError)
    if "vision_config" not in whole.values:
        return None
    vision = whole.section("vision_config", f"{origin}: vision_config")

    def integer(key: str, default: int | None = None) -> int:
        return vision.integer(key, default, most=_MOST)

    if vision.text("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise vision.wrong("hidden_act", "'gelu_pytorch_tanh'")
    if vision.array("deepstack_visual_indexes", int):
        raise vision.wrong("deepstack_visual_indexes", "none")
    positions, width, heads = integer("num_position_embeddings", 2304), integer("hidden_size"), integer("num_heads")
    if isqrt(positions) ** 2 != positions:
        raise vision.wrong("num_position_embeddings", "a square number")
    if width % heads or (width // heads) % 4:
        raise vision.wrong("num_heads", f"heads of 4 n values each out of hidden_size = {width}")
    if integer("out_hidden_size", hidden_size) != hidden_size:
        raise vision.wrong("out_hidden_size", f"the text model's hidden_size = {hidden_size}")
    rope = vision.section("rope_parameters")
    return VisionConfig(
        depth=integer("depth"),
        hidden_size=width,
        intermediate_size=integer("intermediate_size"),
        heads=heads,
        patch=integer("patch_size", 16),
        frames=integer("temporal_patch_size", 2),
        merge=integer("spatial_merge_size", 2),
        side=isqrt(positions),
        out_size=hidden_size,
        channels=integer("in_channels", 3),
        rope_theta=rope.number("rope_theta", 10000.0),
        image_token=whole.integer("image_token_id", least=0),
        video_token=whole.integer("video_token_id", least=0),
    )


def vision_shapes(c: VisionConfig) -> Shapes:
    """Every tensor of the unquantized tower, by canonical name."""
    width, merged = c.hidden_size, c.hidden_size * c.merge**2
    linear: dict[str, tuple[int, int]] = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.linear_fc1": (c.intermediate_size, width),
        "mlp.linear_fc2": (width, c.intermediate_size),
    }
    shapes: Shapes = {
        "patch_embed.proj.weight": (width, c.frames, c.patch, c.patch, c.channels),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (c.side**2, width),
        "merger.norm.weight": (width,),
        "merger.norm.bias": (width,),
        "merger.linear_fc1.weight": (merged, merged),
        "merger.linear_fc1.bias": (merged,),
        "merger.linear_fc2.weight": (c.out_size, merged),
        "merger.linear_fc2.bias": (c.out_size,),
    }
    for i in range(c.depth):
        for name, (rows, columns) in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (width,), f"blocks.{i}.{name}.bias": (width,)}
    return {f"{TOWER}{name}": shape for name, shape in shapes.items()}
