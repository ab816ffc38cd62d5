"""GGUF metadata as a Qwen3.5 config. Keys: llama.cpp ``gguf-py/gguf/constants.py``, under the prefix ``qwen35.``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from mlx_delta.checkpoint.source import CheckpointError
from mlx_delta.config import ModelConfig

ARCHITECTURE = "qwen35"
Metadata = Mapping[str, Any]


def read_metadata(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """Every key with its value. Raises: CheckpointError for another architecture, or one part of a split file."""
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    found = metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise CheckpointError(f"{path}: general.architecture: expected {ARCHITECTURE}, found {found}")
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(f"{path}: split.count: expected a whole file, found 1 of {metadata['split.count']} parts")
    return metadata


def model_config(metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], path: Path) -> ModelConfig:
    """The config.json that the checkpoint had, as far as its text model goes.

    ``shapes``, by GGUF name, give the vocabulary, padding rows included, and whether the embeddings are tied.
    Raises: CheckpointError naming a key that is missing; ConfigError for one that makes no sense.
    """

    def value(key: str) -> Any:
        name = f"{ARCHITECTURE}.{key}"
        if name not in metadata:
            raise CheckpointError(f"{path}: expected the key {name}, found nothing")
        return metadata[name]

    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{path}: expected a tensor token_embd.weight, found nothing")
    value_heads = value("ssm.time_step_rank")
    head_dim = value("attention.key_length")
    tied = "output.weight" not in shapes
    layers = _layer_types(metadata, value("block_count"))
    text = {
        "model_type": "qwen3_5_text",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "vocab_size": shapes["token_embd.weight"][0],
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "full_attention_interval": metadata.get(f"{ARCHITECTURE}.full_attention_interval", 4),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": _one(value("attention.head_count_kv")),
        "head_dim": head_dim,
        "attn_output_gate": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "linear_num_key_heads": value("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": value("ssm.state_size"),
        "linear_value_head_dim": value("ssm.inner_size") // max(1, value_heads),
        "linear_conv_kernel_dim": value("ssm.conv_kernel"),
        # float32 in GGUF: 1e-6 comes as 9.99999997e-07.
        "rms_norm_eps": _short(value("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": value("context_length"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _short(value("rope.freq_base")),
            "partial_rotary_factor": value("rope.dimension_count") / head_dim,
            "mrope_interleaved": True,
            "mrope_section": value("rope.dimension_sections")[:3],
        },
        "tie_word_embeddings": tied,
        "mtp_num_hidden_layers": metadata.get(f"{ARCHITECTURE}.nextn_predict_layers", 0),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    raw = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": tied,
    }
    return ModelConfig.from_dict(raw, str(path))


def _layer_types(metadata: Metadata, blocks: int) -> list[str]:
    """One per layer of the text model: the MTP head's blocks come last, and do not count."""
    count = blocks - metadata.get(f"{ARCHITECTURE}.nextn_predict_layers", 0)
    interval = metadata.get(f"{ARCHITECTURE}.full_attention_interval", 4)
    recurrent = metadata.get(f"{ARCHITECTURE}.attention.recurrent_layers")
    if recurrent is None:
        recurrent = [(i + 1) % interval != 0 for i in range(count)]
    return ["linear_attention" if linear else "full_attention" for linear in recurrent[:count]]


def _one(value: Any) -> Any:
    """The key/value heads of the attention layers: one number, or one a layer with 0 for the linear ones."""
    return max(value) if isinstance(value, list) else value


def _short(value: float) -> float:
    """The decimal number of up to 7 digits that a float32 was made from."""
    return float(f"{value:.7g}")
