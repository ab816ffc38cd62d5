"""What a checkpoint is, from its config and its tensors' headers alone: nothing is loaded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from mlx_delta.arch.base import Components
from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.checkpoint.source import TensorInfo
from mlx_delta.checkpoint.tensors import base_name
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.model.cache import kv_bytes
from mlx_delta.model.experts import EXPERTS

_HALF = 2  # bytes of an activation, or of what a cache holds of it


@dataclass(frozen=True)
class Group:
    """One kind of tensor at one width, "4 bits/64" (groups of 64) or a dtype; scales and biases count to it."""

    component: str
    width: str
    tensors: int
    parameters: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters


@dataclass(frozen=True)
class Summary:
    """A model directory in figures. Text parameters leave out the vision tower and the MTP head."""

    config: ModelConfig
    groups: tuple[Group, ...]
    bytes_per_token: int
    state_bytes: int
    kv_bytes_per_token: int
    kv8_bytes_per_token: int

    @property
    def text_groups(self) -> list[Group]:
        return [group for group in self.groups if group.component not in ("vision", "mtp")]

    def facts(self) -> dict[str, str]:
        text = self.config.text
        linear = text.layer_types.count("linear_attention")
        parameters = sum(group.parameters for group in self.text_groups)
        nbytes = sum(group.nbytes for group in self.text_groups)
        return {
            "architecture": f"{self.config.model_type}, {text.num_layers} layers: {linear} gated-delta, "
            f"{text.num_layers - linear} full attention",
            "hidden, MLP, vocabulary": f"{text.hidden_size}, {text.intermediate_size}, {text.vocab_size}"
            + (" (tied)" if text.tie_word_embeddings else ""),
            **_experts(text),
            "gated-delta heads": f"{text.linear_num_key_heads} key of {text.linear_key_head_dim}, "
            f"{text.linear_num_value_heads} value of {text.linear_value_head_dim}",
            "attention heads": f"{text.num_attention_heads} query, {text.num_key_value_heads} key/value "
            f"of {text.head_dim}",
            "parameters, text": f"{parameters:,}",
            "bytes, text": f"{nbytes:,}  ({8 * nbytes / parameters:.2f} bits a weight)",
            "bytes, all": f"{sum(group.nbytes for group in self.groups):,}",
            "bytes read per token": f"{self.bytes_per_token:,} of weights",
            "state": f"{self.state_bytes:,} bytes a sequence, and {self.kv_bytes_per_token:,} a token of context "
            f"({self.kv8_bytes_per_token:,} with kv_bits=8)",
        }

    def as_dict(self) -> dict[str, object]:
        return {
            "model_type": self.config.model_type,
            "layers": self.config.text.num_layers,
            "text_parameters": sum(group.parameters for group in self.text_groups),
            "text_bytes": sum(group.nbytes for group in self.text_groups),
            "bytes_per_token": self.bytes_per_token,
            "state_bytes": self.state_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv8_bytes_per_token": self.kv8_bytes_per_token,
            "groups": [{**asdict(group), "bits_per_weight": round(group.bits_per_weight, 3)} for group in self.groups],
        }


def summarize(path: Path) -> Summary:
    """Read config.json and the headers of the tensors in ``path``, and check that they fit each other.

    Raises: ConfigError, CheckpointError naming the file or the tensor.
    """
    checkpoint = open_checkpoint(path, gguf=False)
    config, stored, components = checkpoint.config, checkpoint.stored, checkpoint.architecture.components
    return Summary(
        config=config,
        groups=_groups(stored, config, components),
        bytes_per_token=_bytes_per_token(stored, config, components),
        state_bytes=state_bytes(config.text),
        kv_bytes_per_token=kv_bytes_per_token(config.text),
        kv8_bytes_per_token=kv_bytes_per_token(config.text, 8),
    )


def _experts(text: TextConfig) -> dict[str, str]:
    if text.experts is None:
        return {}
    count, chosen, shared = text.experts.count, text.experts.chosen, text.experts.shared_size
    return {"experts": f"{count}, {chosen} a token, and one of {shared} for all"}


def state_bytes(text: TextConfig) -> int:
    """Of one sequence's gated-delta layers, however long it is: conv states in a half type, delta states in float32."""
    conv = (text.linear_conv_kernel_dim - 1) * text.conv_dim * _HALF
    delta = 4 * text.value_dim * text.linear_key_head_dim
    return text.layer_types.count("linear_attention") * (conv + delta)


def kv_bytes_per_token(text: TextConfig, kv_bits: int | None = None) -> int:
    """Keys and values of one token, in a half type or in ``kv_bits``."""
    return text.layer_types.count("full_attention") * kv_bytes(text, mx.bfloat16, kv_bits)


def _width(name: str, info: TensorInfo, config: ModelConfig) -> str:
    packed = info.dtype == mx.uint32 or name != base_name(name)
    width = config.module_quantization(base_name(name).removesuffix(".weight")) if packed else None
    return f"{width.bits} bits/{width.group_size}" if width else str(info.dtype).removeprefix("mlx.core.")


def _parameters(name: str, info: TensorInfo, config: ModelConfig) -> int:
    """Weights that a tensor stands for: a packed matrix counts its values, its scales and biases nothing."""
    if name != base_name(name):
        return 0
    width = config.module_quantization(name.removesuffix(".weight")) if info.dtype == mx.uint32 else None
    return math.prod(info.shape) * 32 // width.bits if width else math.prod(info.shape)


def _groups(stored: Mapping[str, TensorInfo], config: ModelConfig, components: Components) -> tuple[Group, ...]:
    rows: dict[tuple[int, str], list[str]] = defaultdict(list)
    for name in stored:
        # A matrix and its scales are one row of the table, whatever order they come in.
        width = _width(base_name(name), stored[base_name(name)], config)
        rows[components.labels.index(components.of(name)), width].append(name)
    return tuple(
        Group(
            components.labels[index],
            width,
            len(names),
            sum(_parameters(name, stored[name], config) for name in names),
            sum(stored[name].nbytes for name in names),
        )
        for (index, width), names in sorted(rows.items())
    )


def _bytes_per_token(stored: Mapping[str, TensorInfo], config: ModelConfig, components: Components) -> int:
    """Every text tensor once, of experts those chosen, but one row of the embedding (all of it where lm_head is tied to
    it)."""
    total = 0
    for name, info in stored.items():
        kind = components.of(name)
        if kind in ("vision", "mtp"):
            continue
        once = kind != "embed_tokens" or config.text.tie_word_embeddings
        total += info.nbytes if once else info.nbytes // config.text.vocab_size
        if (experts := config.text.experts) is not None and EXPERTS in name:
            total -= info.nbytes - info.nbytes * experts.chosen // experts.count
    return total
