"""Qwen3.5's network with experts: its layers, each with a mixture of experts instead of the MLP.

Source: Hugging Face ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mlx_delta.config import ModelConfig
from mlx_delta.model.experts import Experts
from mlx_delta.model.layers import Layer, hybrid_layer
from mlx_delta.model.network import LAYERS, Network
from mlx_delta.model.weights import Weights


def network(config: ModelConfig, weights: Mapping[str, mx.array], dtype: mx.Dtype) -> Network:
    """Out of canonical tensors, quantized modules with their scales."""
    return Network.from_weights(config, weights, dtype, _layer, Experts.from_weights)


def layer(config: ModelConfig, weights: Mapping[str, mx.array], index: int) -> Layer:
    """One layer alone, from its canonical tensors."""
    return _layer(Weights(config, weights).under(LAYERS), index)


def _layer(layers: Weights, index: int) -> Layer:
    return hybrid_layer(layers, index, Experts.from_weights)
