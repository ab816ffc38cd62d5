"""What the tensors of a text model are: canonical names with shapes, and the check of a checkpoint against them.

Canonical names are MLX's: ``language_model.model.layers.N...``, ``language_model.lm_head.weight``, ``vision_tower.*``,
``mtp.*``. A quantized module has ``weight`` uint32 [N, K * bits / 32] and ``scales``, ``biases`` [N, K / group].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_delta.config import ModelConfig, Quantization, TextConfig
from mlx_delta.errors import CheckpointError

_SHOWN = 5  # problems listed in one error
_MTP_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")


@dataclass(frozen=True)
class Tensor:
    """One canonical tensor; ``load`` gives its array, lazily, with this shape and dtype."""

    name: str
    source_name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    load: Callable[[], mx.array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the unquantized text model, in the order a converted file has them."""
    text = config.text
    root = "language_model.model"
    shapes: dict[str, tuple[int, ...]] = {f"{root}.embed_tokens.weight": (text.vocab_size, text.hidden_size)}
    for index, kind in enumerate(text.layer_types):
        mixer = _linear_shapes(text) if kind == "linear_attention" else _attention_shapes(text)
        for name, shape in {**mixer, **_common_shapes(text)}.items():
            shapes[f"{root}.layers.{index}.{name}"] = shape
    shapes[f"{root}.norm.weight"] = (text.hidden_size,)
    if not text.tie_word_embeddings:
        shapes["language_model.lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def mtp_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the head that predicts the token after next: attention layers on [embedding, hidden state].

    None where config.json has no ``mtp_num_hidden_layers``.
    """
    text = config.text
    raw = config.raw.get("text_config", config.raw)
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(int(raw.get("mtp_num_hidden_layers") or 0)):
        for name, shape in {**_attention_shapes(text), **_common_shapes(text)}.items():
            shapes[f"mtp.layers.{index}.{name}"] = shape
    if shapes:
        shapes["mtp.fc.weight"] = (text.hidden_size, 2 * text.hidden_size)
        shapes |= {f"mtp.{norm}.weight": (text.hidden_size,) for norm in _MTP_NORMS}
    return shapes


def _common_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = text.hidden_size, text.intermediate_size
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def _linear_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    hidden, heads = text.hidden_size, text.linear_num_value_heads
    return {
        "linear_attn.in_proj_qkv.weight": (text.conv_dim, hidden),
        "linear_attn.in_proj_z.weight": (text.value_dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (text.conv_dim, text.linear_conv_kernel_dim, 1),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (text.linear_value_head_dim,),
        "linear_attn.out_proj.weight": (hidden, text.value_dim),
    }


def _attention_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """q_proj has twice the heads' rows: each head's query, then its output gate."""
    hidden, queries, keys = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    return {
        "self_attn.q_proj.weight": (2 * queries * text.head_dim, hidden),
        "self_attn.k_proj.weight": (keys * text.head_dim, hidden),
        "self_attn.v_proj.weight": (keys * text.head_dim, hidden),
        "self_attn.o_proj.weight": (hidden, queries * text.head_dim),
        "self_attn.q_norm.weight": (text.head_dim,),
        "self_attn.k_norm.weight": (text.head_dim,),
    }


def base_name(name: str) -> str:
    """``x.weight`` of ``x.scales`` and ``x.biases``; any other name as it is."""
    for suffix in (".scales", ".biases"):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight"
    return name


def check_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, origin: Path, mtp: bool = False) -> None:
    """Every tensor of the text model (and the MTP head) is there with its shape and a fitting dtype, quantized or not.

    Raises: CheckpointError with ``origin`` and the first few names: what was expected, what was found.
    """
    problems: list[str] = []
    for name, shape in {**expected_shapes(config), **(mtp_shapes(config) if mtp else {})}.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in tensors:
            problems += _quantized_problems(tensors, module, shape, config.module_quantization(module))
        else:
            problems += _problems(tensors, name, shape, packed=False)
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise CheckpointError("\n  ".join([f"{origin}: tensors do not fit config.json:", *problems[:_SHOWN], *more]))


def _quantized_problems(
    tensors: Mapping[str, Tensor], module: str, shape: tuple[int, ...], quantization: Quantization | None
) -> list[str]:
    if quantization is None:
        return [f"{module}.scales: expected a quantization section in config.json, found none"]
    if len(shape) != 2 or shape[1] % quantization.group_size:
        return [f"{module}.scales: expected no quantization of {list(shape)} by {quantization.group_size}, found it"]
    rows, columns = shape
    groups = (rows, columns // quantization.group_size)
    return [
        *_problems(tensors, f"{module}.weight", (rows, columns * quantization.bits // 32), packed=True),
        *_problems(tensors, f"{module}.scales", groups, packed=False),
        *_problems(tensors, f"{module}.biases", groups, packed=False),
    ]


def _problems(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], packed: bool) -> list[str]:
    found = tensors.get(name)
    if found is None:
        return [f"{name}: expected {list(shape)}, found nothing"]
    if found.shape != shape:
        return [f"{name}: expected {list(shape)}, found {list(found.shape)}"]
    fits = found.dtype == mx.uint32 if packed else mx.issubdtype(found.dtype, mx.floating)
    if not fits:
        return [f"{name}: expected {'packed uint32' if packed else 'a float dtype'}, found {found.dtype}"]
    return []
