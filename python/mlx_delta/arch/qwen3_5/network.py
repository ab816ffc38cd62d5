"""Qwen3.5's network: gated-delta and attention layers, each with an MLP, or what else follows a mixer.

Source: Hugging Face ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import mlx.core as mx

from mlx_delta.config import ModelConfig
from mlx_delta.model.layers import FeedForward, Layer, Mlp, hybrid_layer
from mlx_delta.model.network import LAYERS, Network
from mlx_delta.model.weights import Weights

MakeFeedForward = Callable[[Weights], FeedForward]


def network(
    config: ModelConfig,
    weights: Mapping[str, mx.array],
    dtype: mx.Dtype,
    feed_forward: MakeFeedForward = Mlp.from_weights,
) -> Network:
    """Out of canonical tensors, quantized modules with their scales. feed_forward: out of a layer's."""
    layer = partial(hybrid_layer, feed_forward=feed_forward)
    return Network.from_weights(config, weights, dtype, layer, feed_forward)


def layer(
    config: ModelConfig,
    weights: Mapping[str, mx.array],
    index: int,
    feed_forward: MakeFeedForward = Mlp.from_weights,
) -> Layer:
    """One layer alone, from its canonical tensors."""
    return hybrid_layer(Weights(config, weights).under(LAYERS), index, feed_forward)
