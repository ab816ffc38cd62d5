"""The whole text model, from canonical weights to logits.

Weights come by their canonical (MLX) names; matrices stay as they are stored, quantized or plain, the embedding and
lm_head too; small parameters become float32. ``dtype`` is that of the activations.
Source: Hugging Face ``modeling_qwen3_5.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.errors import CheckpointError
from mlx_delta.model.cache import Cache
from mlx_delta.model.layers import AttentionLayer, DeltaLayer, Mlp, Window
from mlx_delta.ops import Matrix

_ROOT = "language_model.model"


@dataclass(frozen=True)
class Network:
    """Qwen3.5's text model. Stateless: all that changes is in the cache."""

    config: TextConfig
    dtype: mx.Dtype
    embed_tokens: Matrix
    layers: tuple[DeltaLayer | AttentionLayer, ...]
    norm: mx.array
    lm_head: Matrix

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: Mapping[str, mx.array], dtype: mx.Dtype) -> Network:
        """Build from canonical tensors: every name of ``expected_shapes(config)``, quantized modules with scales."""
        w = _Weights(config, weights)
        text = config.text
        embed_tokens = w.matrix(f"{_ROOT}.embed_tokens")
        network = cls(
            config=text,
            dtype=dtype,
            embed_tokens=embed_tokens,
            layers=tuple(_layer(text, w, i, kind) for i, kind in enumerate(text.layer_types)),
            norm=w.parameter(f"{_ROOT}.norm.weight"),
            lm_head=embed_tokens if text.tie_word_embeddings else w.matrix("language_model.lm_head"),
        )
        mx.eval(*_arrays(network))  # a lazy array can be evaluated in the thread alone that made it
        return network

    def hidden_states(self, tokens: mx.array, cache: Cache, mask: mx.array | None = None) -> Iterator[mx.array]:
        """x [B, T, hidden] as it enters each layer and leaves the last; advances the cache.

        mask: bool [B, T] of left-padded prompts: false before each sequence begins. A prompt may come in chunks.
        """
        if mask is not None:
            padding = mx.sum(mx.logical_not(mask), axis=1).astype(mx.int32)
            cache.start = padding if cache.start is None else cache.start + padding
        positions = None
        if cache.start is not None:  # its own, so that a padded sequence rotates by the very angles it has alone
            positions = mx.maximum(mx.arange(cache.offset, cache.offset + tokens.shape[1]) - cache.start[:, None], 0)
        window = Window(cache.offset, mask, cache.start, positions)
        x = ops.embedding(tokens, self.embed_tokens, self.dtype)
        yield x
        for layer, state in zip(self.layers, cache.layers, strict=True):
            x = layer(x, state, window)
            yield x
        cache.offset += tokens.shape[1]

    def logits(self, x: mx.array) -> mx.array:
        """x [.., hidden] -> [.., V]: the final norm and lm_head."""
        return ops.qmm(x, (self.lm_head,), norm=self.norm, eps=self.config.rms_norm_eps)

    def __call__(
        self, tokens: mx.array, cache: Cache, *, mask: mx.array | None = None, last_only: bool = False
    ) -> mx.array:
        """tokens int [B, T] -> logits [B, T, V]; with ``last_only`` [B, 1, V], of the last token alone."""
        x = mx.array(0)
        for x in self.hidden_states(tokens, cache, mask):  # noqa: B007 - the last one is what is wanted
            pass
        return self.logits(x[:, -1:] if last_only else x)

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        """Every weight matrix that decoding a token reads whole, by its canonical module name."""
        for index, layer in enumerate(self.layers):
            yield from layer_matrices(index, layer)
        tied = self.lm_head is self.embed_tokens
        yield f"{_ROOT}.embed_tokens" if tied else "language_model.lm_head", self.lm_head

    @property
    def bytes_per_token(self) -> int:
        """Weight bytes that decoding one token reads: every matrix once, one row of the embedding.

        States and the KV cache come on top: they depend on the batch and the context.
        """
        row = self.embed_tokens.nbytes // self.embed_tokens.rows
        return row + sum(matrix.nbytes for _, matrix in self.matrices())


def _arrays(part: Any) -> Iterator[mx.array]:
    """Every array of a network, or of a part of one."""
    if isinstance(part, mx.array):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _arrays(each)
    elif isinstance(part, Matrix):
        yield from (a for a in (part.weight, part.scales, part.biases) if a is not None)
    elif is_dataclass(part) and not isinstance(part, type):
        for each in fields(part):
            yield from _arrays(getattr(part, each.name))


def layer_matrices(index: int, layer: DeltaLayer | AttentionLayer) -> Iterator[tuple[str, Matrix]]:
    """The matrices of the layer of that number, by their canonical module names."""
    root = f"{_ROOT}.layers.{index}"
    if isinstance(layer, DeltaLayer):
        for name, matrix in zip(("qkv", "z", "b", "a"), layer.in_proj, strict=True):
            yield f"{root}.linear_attn.in_proj_{name}", matrix
        yield f"{root}.linear_attn.out_proj", layer.out_proj
    else:
        for name, matrix in zip("qkv", layer.qkv_proj, strict=True):
            yield f"{root}.self_attn.{name}_proj", matrix
        yield f"{root}.self_attn.o_proj", layer.o_proj
    for name, matrix in (("gate", layer.mlp.gate), ("up", layer.mlp.up), ("down", layer.mlp.down)):
        yield f"{root}.mlp.{name}_proj", matrix


def layer_from_weights(config: ModelConfig, weights: Mapping[str, mx.array], index: int) -> DeltaLayer | AttentionLayer:
    """One layer alone, from its canonical tensors."""
    return _layer(config.text, _Weights(config, weights), index, config.text.layer_types[index])


@dataclass(frozen=True)
class _Weights:
    """Canonical tensors as what the layers hold."""

    config: ModelConfig
    tensors: Mapping[str, mx.array]

    def matrix(self, module: str) -> Matrix:
        weight, scales = self.tensors[f"{module}.weight"], self.tensors.get(f"{module}.scales")
        if scales is None:
            return Matrix.plain(weight)
        width = self.config.module_quantization(module)
        if width is None:
            raise CheckpointError(
                f"{module}: expected a quantization section in config.json for its scales, found none"
            )
        return Matrix.affine(weight, scales, self.tensors[f"{module}.biases"], width.bits, width.group_size)

    def parameter(self, name: str) -> mx.array:
        return self.tensors[name].astype(mx.float32)


def _layer(text: TextConfig, w: _Weights, index: int, kind: str) -> DeltaLayer | AttentionLayer:
    root = f"{_ROOT}.layers.{index}"
    norm = w.parameter(f"{root}.input_layernorm.weight")
    mlp = Mlp(
        norm=w.parameter(f"{root}.post_attention_layernorm.weight"),
        gate=w.matrix(f"{root}.mlp.gate_proj"),
        up=w.matrix(f"{root}.mlp.up_proj"),
        down=w.matrix(f"{root}.mlp.down_proj"),
    )
    if kind == "full_attention":
        attention = f"{root}.self_attn"
        return AttentionLayer(
            config=text,
            norm=norm,
            qkv_proj=(
                w.matrix(f"{attention}.q_proj"),
                w.matrix(f"{attention}.k_proj"),
                w.matrix(f"{attention}.v_proj"),
            ),
            q_norm=w.parameter(f"{attention}.q_norm.weight"),
            k_norm=w.parameter(f"{attention}.k_norm.weight"),
            o_proj=w.matrix(f"{attention}.o_proj"),
            mlp=mlp,
        )
    delta = f"{root}.linear_attn"
    return DeltaLayer(
        config=text,
        norm=norm,
        in_proj=(
            w.matrix(f"{delta}.in_proj_qkv"),
            w.matrix(f"{delta}.in_proj_z"),
            w.matrix(f"{delta}.in_proj_b"),
            w.matrix(f"{delta}.in_proj_a"),
        ),
        conv=w.parameter(f"{delta}.conv1d.weight").reshape(text.conv_dim, -1),
        A_log=w.parameter(f"{delta}.A_log"),
        dt_bias=w.parameter(f"{delta}.dt_bias"),
        gated_norm=w.parameter(f"{delta}.norm.weight"),
        out_proj=w.matrix(f"{delta}.out_proj"),
        mlp=mlp,
    )
