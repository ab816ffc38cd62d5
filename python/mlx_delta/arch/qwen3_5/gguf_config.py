"""GGUF metadata as a config.json of Qwen3.5. Keys, after the architecture's name: llama.cpp ``gguf/constants.py``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_delta.arch.qwen3_5.gguf_tokenizer import token_ids
from mlx_delta.errors import CheckpointError

Metadata = Mapping[str, Any]


class _Keys:
    """The keys of the model, checked. ``missing``: what is taken instead of a CheckpointError."""

    def __init__(self, metadata: Metadata, path: Path) -> None:
        self._metadata = metadata
        self.prefix = metadata["general.architecture"]
        self._path = path

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{self.prefix}.{key}")

    def integer(self, key: str, missing: int | None = None) -> int:
        """A positive integer, or the largest of one a layer: Ollama writes 0 key/value heads of the linear layers."""
        value = self.get(key)
        if isinstance(value, list) and all(type(each) is int for each in value):
            value = max(value, default=None)
        return self._checked(key, missing if value is None else value, "a positive integer", int)

    def number(self, key: str) -> float:
        """A positive number, the shortest that a float32 was made from."""
        return float(f"{self._checked(key, self.get(key), 'a positive number', int, float):.7g}")

    def _checked(self, key: str, value: Any, expected: str, *kinds: type) -> Any:
        name = f"{self.prefix}.{key}"
        if value is None:
            raise CheckpointError(f"{self._path}: expected the key {name}, found nothing")
        if type(value) not in kinds or not 0 < value < math.inf:
            raise CheckpointError(f"{self._path}: {name}: expected {expected}, found {value!r:.80}")
        return value


_MLP = {"intermediate_size": "feed_forward_length"}


def config_from_gguf(
    metadata: Metadata,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    model_type: str = "qwen3_5",
    feed_forward: Mapping[str, str] = _MLP,
) -> dict[str, Any]:
    """The config.json that the checkpoint had, as far as its text model goes.

    feed_forward: what of it is about what follows a layer's mixer -> GGUF's key.

    ``shapes``, by GGUF name, give the vocabulary, padding rows included, whether the embeddings are tied, and which
    layers are of which kind: files differ in the keys that say so, and some have none.
    Raises: CheckpointError naming a key that is missing or makes no sense.
    """
    keys = _Keys(metadata, path)
    if len(shapes.get("token_embd.weight", ())) != 2:
        found = shapes.get("token_embd.weight", "nothing")
        raise CheckpointError(f"{path}: token_embd.weight: expected the tensor [V, hidden], found {found}")
    value_heads, head_dim = keys.integer("ssm.time_step_rank"), keys.integer("attention.key_length")
    tied = "output.weight" not in shapes
    layers, mtp = _layers(keys, shapes, path)
    sections = _sections(keys, path)
    eos = token_ids(metadata, "eos_token_id", path)
    text = {
        "model_type": f"{model_type}_text",
        "hidden_size": keys.integer("embedding_length"),
        **{name: keys.integer(key) for name, key in feed_forward.items()},
        "vocab_size": shapes["token_embd.weight"][0],
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "full_attention_interval": keys.integer("full_attention_interval", 4),
        "num_attention_heads": keys.integer("attention.head_count"),
        "num_key_value_heads": keys.integer("attention.head_count_kv"),
        "head_dim": head_dim,
        "attn_output_gate": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "linear_num_key_heads": keys.integer("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": keys.integer("ssm.state_size"),
        "linear_value_head_dim": keys.integer("ssm.inner_size") // value_heads,
        "linear_conv_kernel_dim": keys.integer("ssm.conv_kernel"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "rope_parameters": {
            "rope_type": _rope_type(keys),
            "rope_theta": keys.number("rope.freq_base"),
            "partial_rotary_factor": keys.integer("rope.dimension_count", 2 * sum(sections)) / head_dim,
            "mrope_interleaved": True,
            "mrope_section": sections,
        },
        "tie_word_embeddings": tied,
        "mtp_num_hidden_layers": mtp,
        "eos_token_id": eos[0] if eos else None,
    }
    return {
        "architectures": [
            "Qwen3_5MoeForConditionalGeneration" if model_type == "qwen3_5_moe" else "Qwen3_5ForConditionalGeneration"
        ],
        "model_type": model_type,
        "text_config": text,
        "tie_word_embeddings": tied,
    }


def _layers(keys: _Keys, shapes: Mapping[str, tuple[int, ...]], path: Path) -> tuple[list[str], int]:
    """The kind of each layer of the text model, and the number of the MTP head's blocks, which come last.

    Read off the tensors where they say so: a head may have been taken out with its key left, or the reverse.
    """
    blocks: dict[int, set[str]] = {}
    for name in shapes:
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if found is not None:
            blocks.setdefault(int(found[1]), set()).add(found[2])
    first = next((i for i in sorted(blocks) if any(part.startswith("nextn.") for part in blocks[i])), None)
    count = keys.integer("block_count")
    heads = keys.get("nextn_predict_layers")
    if heads is not None:
        count -= keys.integer("nextn_predict_layers") if heads else 0
    elif first is not None:
        count = min(count, first)
    beyond = [i for i in sorted(blocks) if i >= count]
    if count < 1 or first not in (None, count) or (beyond and first is None):
        seen = f"tensors of blk.{beyond[-1]}" if first is None else f"its MTP head in blk.{first}"
        what = f"{path}: {keys.prefix}.block_count: expected the layers of its tensors"
        raise CheckpointError(f"{what}, found {count} (without the MTP head) and {seen}")
    return [_layer_type(i, blocks.get(i, set()), keys) for i in range(count)], len(beyond)


def _layer_type(index: int, parts: set[str], keys: _Keys) -> str:
    recurrent = keys.get("attention.recurrent_layers")
    if ("ssm_a" in parts) != ("attn_q.weight" in parts):
        linear = "ssm_a" in parts
    elif isinstance(recurrent, list) and index < len(recurrent):
        linear = bool(recurrent[index])
    else:
        linear = (index + 1) % keys.integer("full_attention_interval", 4) != 0
    return "linear_attention" if linear else "full_attention"


def _sections(keys: _Keys, path: Path) -> list[int]:
    """Frequencies of the T, H and W positions. llama.cpp has a fourth, 0; Ollama writes three under three names."""
    for key in ("rope.dimension_sections", "rope.mrope_section", "mrope_sections"):
        value = keys.get(key)
        if isinstance(value, list) and len(value) >= 3 and all(type(n) is int and n >= 0 for n in value):
            return value[:3]
        if value is not None:
            what = f"{path}: {keys.prefix}.{key}: expected three counts"
            raise CheckpointError(f"{what}, found {value!r:.80}")
    raise CheckpointError(f"{path}: expected the key {keys.prefix}.rope.dimension_sections, found nothing")


def _rope_type(keys: _Keys) -> Any:
    kind = keys.get("rope.scaling.type")
    return "default" if kind in (None, "", "none") else kind
