"""Qwen3.5: gated-delta and attention layers in turn, each with an MLP. All that is this family's own."""

from __future__ import annotations

from mlx_delta.arch.base import Architecture
from mlx_delta.arch.qwen3_5.components import COMPONENTS
from mlx_delta.arch.qwen3_5.config import text_config
from mlx_delta.arch.qwen3_5.folds import FOLDS
from mlx_delta.arch.qwen3_5.gguf import GGUF
from mlx_delta.arch.qwen3_5.markup import MARKUP
from mlx_delta.arch.qwen3_5.names import canonical_name, canonical_tensors
from mlx_delta.arch.qwen3_5.network import layer, network
from mlx_delta.arch.qwen3_5.presets import presets
from mlx_delta.arch.qwen3_5.recipe import RECIPES
from mlx_delta.arch.qwen3_5.shapes import mtp_shapes, text_shapes
from mlx_delta.arch.qwen3_5.shares import shares, stages
from mlx_delta.model.layers import Mlp
from mlx_delta.vision.config import vision_config

QWEN3_5 = Architecture(
    model_types=("qwen3_5", "qwen3_5_text"),
    text_config=text_config,
    text_shapes=text_shapes,
    mtp_shapes=mtp_shapes,
    canonical_name=canonical_name,
    canonical_tensors=canonical_tensors,
    components=COMPONENTS,
    network=network,
    layer=layer,
    feed_forward=Mlp.from_weights,
    recipes=RECIPES,
    folds=FOLDS,
    presets=presets,
    markup=MARKUP,
    gguf=GGUF,
    vision=lambda config: vision_config(config.raw, config.text.hidden_size),
    shares=shares,
    stages=stages,
)
