"""Qwen3.5's network: gated-delta and attention layers, each with an MLP.

Source: Hugging Face ``modeling_qwen3_5.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mlx_delta.config import ModelConfig
from mlx_delta.model.layers import Layer, Mlp, hybrid_layer
from mlx_delta.model.network import LAYERS, Network
from mlx_delta.model.weights import Weights


def network(config: ModelConfig, weights: Mapping[str, mx.array], dtype: mx.Dtype) -> Network:
    """Out of canonical tensors, quantized modules with their scales."""
    return Network.from_weights(config, weights, dtype, _layer, Mlp.from_weights)


def layer(config: ModelConfig, weights: Mapping[str, mx.array], index: int) -> Layer:
    """One layer alone, from its canonical tensors."""
    return _layer(Weights(config, weights).under(LAYERS), index)


def _layer(layers: Weights, index: int) -> Layer:
    return hybrid_layer(layers, index, Mlp.from_weights)
