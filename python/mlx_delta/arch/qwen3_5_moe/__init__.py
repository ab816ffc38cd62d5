"""Qwen3.5 with experts (35B-A3B and its like): Qwen3.5, but for the feed-forward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.qwen3_5.network import layer, network
from mlx_delta.arch.qwen3_5_moe.components import COMPONENTS
from mlx_delta.arch.qwen3_5_moe.config import text_config
from mlx_delta.arch.qwen3_5_moe.folds import FOLDS
from mlx_delta.arch.qwen3_5_moe.gguf import GGUF
from mlx_delta.arch.qwen3_5_moe.recipe import RECIPES
from mlx_delta.arch.qwen3_5_moe.shapes import mtp_shapes, text_shapes
from mlx_delta.arch.qwen3_5_moe.source import ExpertSource
from mlx_delta.model.experts import Experts

QWEN3_5_MOE = replace(
    QWEN3_5,
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    text_config=text_config,
    text_shapes=text_shapes,
    mtp_shapes=mtp_shapes,
    components=COMPONENTS,
    network=partial(network, feed_forward=Experts.from_weights),
    layer=partial(layer, feed_forward=Experts.from_weights),
    feed_forward=Experts.from_weights,
    recipes=RECIPES,
    folds=FOLDS,
    gguf=GGUF,
    source=ExpertSource,
)
