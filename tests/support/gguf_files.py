"""GGUF files as llama.cpp writes them, made from the tiny checkpoint head by head, by none of our code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from bench.random_gguf import add_metadata
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map
from gguf.quants import quantize

from support import TINY

HEADS, KEYS, DIM = 4, 2, 128  # value heads, key heads, values a head
# llama.cpp keeps value head i of key head i % KEYS at place i; Hugging Face has the heads of one key head together.
ORDER = [key * (HEADS // KEYS) + j for j in range(HEADS // KEYS) for key in range(KEYS)]

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

MTP = {
    "mtp.fc.weight": "eh_proj",
    "mtp.norm.weight": "shared_head_norm",
    "mtp.pre_fc_norm_embedding.weight": "enorm",
    "mtp.pre_fc_norm_hidden.weight": "hnorm",
}


def stored() -> dict[str, np.ndarray]:
    """The tiny checkpoint's tensors in float32, under their official names."""
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(TINY.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        arrays |= {name: np.array(array.astype(mx.float32)) for name, array in loaded.items()}
    return arrays


def write_gguf(
    path: Path,
    kind: str = "BF16",
    edit: dict[str, Any] | None = None,
    tied: bool = False,
    *,
    rename: Callable[[str], str | None] = str,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """The tiny checkpoint with its matrices stored as ``kind``; ``edit`` replaces metadata (None drops a key).

    rename: a tensor's name in the file, or None to leave it out. extra: more tensors.
    """
    writer = GGUFWriter(path, "qwen35")
    for key, value in (metadata() | (edit or {})).items():
        if value is not None:
            add_metadata(writer, key, value)
    for name, array in stored().items():
        if not tied or name != "lm_head.weight":
            _write(writer, name, array, kind, rename)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_experts_gguf(source: Path, path: Path, *, fused: bool) -> Path:
    """The checkpoint with experts at ``source``, without its MTP head, under the names that gguf-py's own map gives.

    fused: an expert's gate and up are one tensor, as newer converters write them.
    """
    config = json.loads((source / "config.json").read_text())["text_config"]
    writer, names = GGUFWriter(path, "qwen35moe"), get_tensor_name_map(MODEL_ARCH.QWEN35MOE, 64)
    own = {
        "block_count": config["num_hidden_layers"],
        "nextn_predict_layers": 0,
        "feed_forward_length": None,
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
    }
    keys = {key.replace("qwen35.", "qwen35moe."): value for key, value in metadata().items()}
    for key, value in (keys | {f"qwen35moe.{key}": value for key, value in own.items()}).items():
        if value is not None:
            add_metadata(writer, key, value)
    loaded = mx.load(str(source / "model.safetensors"))
    assert isinstance(loaded, dict)
    arrays = {name: np.array(each.astype(mx.float32)) for name, each in loaded.items() if not name.startswith("mtp.")}
    if not fused:
        for name in [name for name in arrays if name.endswith("gate_up_proj")]:
            gate, up = np.split(arrays.pop(name), 2, axis=1)
            arrays |= {name.replace("gate_up", part): each for part, each in (("gate", gate), ("up", up))}
    for name, array in arrays.items():
        official = name.replace("model.language_model", "model").replace(".dt_bias", ".dt_proj.bias")
        full = names.get_name(official, (".weight", ".bias"))
        assert full is not None, name
        full += ".weight" if full.endswith("_exps") else ""
        array = tiled(full.split(".", 2)[-1], array)
        if full.endswith("norm.weight") and not full.endswith("ssm_norm.weight"):
            array = array + np.float32(1)
        writer.add_tensor(full, array[0] if full.endswith("inp_shexp.weight") else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata() -> dict[str, Any]:
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    vocabulary = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    vocabulary |= {i: token["content"] for i, token in added.items()}
    control = [i for i, token in added.items() if token["content"].startswith("<|")]  # as llama.cpp's converter guesses
    kinds = [
        TokenType.CONTROL if i in control else TokenType.USER_DEFINED if i in added else TokenType.NORMAL
        for i in range(len(vocabulary))
    ]
    return {
        "qwen35.block_count": config["num_hidden_layers"] + 1,
        "qwen35.nextn_predict_layers": 1,
        "qwen35.context_length": 8192,
        "qwen35.embedding_length": config["hidden_size"],
        "qwen35.feed_forward_length": config["intermediate_size"],
        "qwen35.attention.head_count": config["num_attention_heads"],
        "qwen35.attention.head_count_kv": config["num_key_value_heads"],
        "qwen35.attention.key_length": config["head_dim"],
        "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen35.rope.dimension_sections": [11, 11, 10, 0],
        "qwen35.rope.dimension_count": 64,
        "qwen35.rope.freq_base": 1e7,
        "qwen35.ssm.conv_kernel": 4,
        "qwen35.ssm.state_size": config["linear_key_head_dim"],
        "qwen35.ssm.group_count": KEYS,
        "qwen35.ssm.time_step_rank": HEADS,
        "qwen35.ssm.inner_size": HEADS * DIM,
        "qwen35.full_attention_interval": 4,
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": [vocabulary[i] for i in range(len(vocabulary))],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": 4070,
        "tokenizer.chat_template": (TINY / "chat_template.jinja").read_text(),
    }


def _write(writer: GGUFWriter, name: str, array: np.ndarray, kind: str, rename: Callable[[str], str | None]) -> None:
    if name.startswith("mtp.layers.0."):  # one more block, as far as this file goes
        name = name.replace("mtp.layers.0.", "model.language_model.layers.8.")
    if name in ("lm_head.weight", "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"):
        short = {"lm_head": "output", "embed_tokens": "token_embd", "norm": "output_norm"}[name.split(".")[-2]]
        full = f"{short}.weight"
    elif name.startswith("model.language_model.layers."):
        number, module = name.removeprefix("model.language_model.layers.").split(".", 1)
        stem = module.removesuffix(".weight")
        short = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}.get(
            module
        ) or f"{NAMES[stem]}.weight"
        full = f"blk.{number}.{short}"
    elif name in MTP:
        full = f"blk.8.nextn.{MTP[name]}.weight"
    else:
        return
    array = tiled(full.split(".", 2)[-1], array)
    written = rename(full)
    if written is None:
        return
    if full.endswith("norm.weight") and not full.endswith("ssm_norm.weight"):
        array = array + np.float32(1)
    if array.ndim == 1 or "conv1d" in full:
        writer.add_tensor(written, array)
    else:
        data_type = GGMLQuantizationType[kind]
        writer.add_tensor(written, quantize(array, data_type), raw_dtype=data_type)


def tiled(short: str, array: np.ndarray) -> np.ndarray:
    """One tensor of a layer in llama.cpp's order of heads and with its values."""
    rows = {"attn_qkv.weight": DIM, "attn_gate.weight": DIM, "ssm_conv1d.weight": DIM}
    rows |= {"ssm_alpha.weight": 1, "ssm_beta.weight": 1, "ssm_a": 1, "ssm_dt.bias": 1}
    if short == "ssm_conv1d.weight":
        array = array[:, 0]
    if short == "ssm_a":
        array = -np.exp(array)
    if short == "ssm_out.weight":
        return np.concatenate([array[:, head * DIM : (head + 1) * DIM] for head in ORDER], axis=1)
    if short not in rows:
        return array
    n, start = rows[short], len(array) - HEADS * rows[short]
    return np.concatenate([array[:start], *(array[start + head * n : start + (head + 1) * n] for head in ORDER)])
