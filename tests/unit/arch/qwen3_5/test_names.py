"""Names and values of every kind of checkpoint come out as MLX's, and damaged ones are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.qwen3_5.gguf_names import (
    canonical_from_gguf,
    gguf_from_canonical,
    grouped_from_tiled,
    tiled_from_grouped,
)
from mlx_delta.arch.qwen3_5.names import canonical_tensors
from mlx_delta.arch.registry import read_config
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.errors import CheckpointError
from support import TINY

LAYER = "language_model.model.layers.3."
Arrays = dict[str, mx.array]


@pytest.fixture(scope="module")
def stored() -> Arrays:
    """The tiny checkpoint's tensors as they are stored, under the official names."""
    source = open_checkpoint(TINY).source
    return {name: source.load(name) for name in source.tensors}


def write(path: Path, arrays: Arrays, edit: Callable[[dict[str, object]], None] = lambda config: None) -> Path:
    path.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    edit(config)
    (path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    return path


def canonical(path: Path) -> Arrays:
    return {name: tensor.load() for name, tensor in open_checkpoint(path).tensors.items()}


def renamed(arrays: Arrays, old: str, new: str) -> Arrays:
    return {new + name.removeprefix(old) if name.startswith(old) else name: a for name, a in arrays.items()}


def test_official_names_and_values(stored: Arrays) -> None:
    tensors = open_checkpoint(TINY).tensors
    for tensor in tensors.values():
        array = tensor.load()
        assert (tuple(array.shape), array.dtype) == (tensor.shape, tensor.dtype), tensor.name
    official = "model.language_model.layers.3."
    for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        loaded = tensors[f"{LAYER}{norm}.weight"].load()
        assert loaded.dtype == mx.float32
        assert mx.array_equal(loaded, stored[f"{official}{norm}.weight"].astype(mx.float32) + 1)
    for name in ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding", "layers.0.self_attn.k_norm"):
        shifted = stored[f"mtp.{name}.weight"].astype(mx.float32) + 1
        assert mx.array_equal(tensors[f"mtp.{name}.weight"].load(), shifted)
    gated = "layers.0.linear_attn.norm.weight"
    assert mx.array_equal(tensors[f"language_model.model.{gated}"].load(), stored[f"model.language_model.{gated}"])
    vision = "blocks.0.norm1.weight"
    assert mx.array_equal(tensors[f"vision_tower.{vision}"].load(), stored[f"model.visual.{vision}"])
    assert tensors["vision_tower.patch_embed.proj.weight"].shape == (128, 2, 16, 16, 3)
    assert tensors["language_model.model.layers.0.linear_attn.conv1d.weight"].shape == (1024, 4, 1)


def test_every_naming_gives_the_same_tensors(stored: Arrays, tmp_path: Path) -> None:
    official = canonical(TINY)
    mlx = canonical(write(tmp_path / "mlx", official))
    text = {name: array for name, array in stored.items() if not name.startswith("model.visual.")}
    text_only = canonical(write(tmp_path / "text", renamed(text, "model.language_model.", "model.")))
    for name, array in official.items():
        if not name.startswith("mtp."):
            assert mx.array_equal(mlx[name], array), name
        if not name.startswith("vision_tower."):
            assert mx.array_equal(text_only[name], array), name


def test_layout_of_the_convolution_overrules_the_names(stored: Arrays, tmp_path: Path) -> None:
    official = canonical(TINY)
    only_renamed = renamed(stored, "model.language_model.", "language_model.model.")
    only_converted = renamed(official, "language_model.model.", "model.language_model.")
    for path, arrays in (("renamed", only_renamed), ("converted", only_converted)):
        found = canonical(write(tmp_path / path, arrays))
        for name in (f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.k_norm.weight", "mtp.norm.weight"):
            assert mx.array_equal(found[name], official[name]), (path, name)


def test_four_channels_are_not_ambiguous(tmp_path: Path) -> None:
    """C = 4 equals the kernel: [4, 1, 4] and [4, 4, 1] still differ in their last axis."""

    def shrink(config: dict[str, object]) -> None:
        text = config["text_config"]
        assert isinstance(text, dict)
        text |= {f"linear_{part}": 1 for part in ("num_key_heads", "num_value_heads", "key_head_dim")}
        text["linear_value_head_dim"] = 2

    for shape, shift in (((4, 1, 4), 1.0), ((4, 4, 1), 0.0)):
        arrays = {
            "model.layers.0.linear_attn.conv1d.weight": mx.ones(shape),
            "model.norm.weight": mx.zeros(256),
        }
        path = write(tmp_path / str(shift), arrays, shrink)
        config = read_config(path)
        tensors = canonical_tensors(SafetensorsSource(path), config, QWEN3_5.text_shapes(config))
        found = {name: tensor.load() for name, tensor in tensors.items()}
        assert found["language_model.model.layers.0.linear_attn.conv1d.weight"].shape == (4, 4, 1)
        assert mx.all(found["language_model.model.norm.weight"] == shift)


def test_tied_and_a_head_besides(stored: Arrays, tmp_path: Path) -> None:
    """The tensors count: a head of its own is taken whatever the config says, the embedding once more is left out."""

    def tie(config: dict[str, object]) -> None:
        text = config["text_config"]
        assert isinstance(text, dict)
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = True

    own = open_checkpoint(write(tmp_path / "own", stored, tie))
    assert not own.config.text.tie_word_embeddings
    assert "language_model.lm_head.weight" in own.tensors
    assert own.config == open_checkpoint(write(tmp_path / "untied", stored)).config
    twice = {**stored, "lm_head.weight": stored["model.language_model.embed_tokens.weight"]}
    same = open_checkpoint(write(tmp_path / "twice", twice, tie))
    assert same.config.text.tie_word_embeddings
    assert "language_model.lm_head.weight" not in same.tensors


def test_wrong_tensors_are_named(stored: Arrays, tmp_path: Path) -> None:
    official = "model.language_model."
    twice = stored | {"model.norm.weight": mx.zeros(256)}
    with pytest.raises(CheckpointError, match=r"one language_model\.model\.norm\.weight"):
        canonical(write(tmp_path / "twice", twice))
    with pytest.raises(CheckpointError, match=r"expected tensors named .*found transformer\.wte"):
        canonical(write(tmp_path / "foreign", stored | {"transformer.wte": mx.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"layers\.8\.mlp\.up_proj\.weight"):
        canonical(write(tmp_path / "extra", stored | {f"{official}layers.8.mlp.up_proj.weight": mx.zeros(1)}))
    wrong = stored | {f"{official}layers.3.mlp.up_proj.weight": mx.zeros((640, 255))}
    del wrong[f"{official}norm.weight"]
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(write(tmp_path / "wrong", wrong))
    assert "layers.3.mlp.up_proj.weight: expected [640, 256], found [640, 255]" in str(error.value)
    assert "language_model.model.norm.weight: expected [256], found nothing" in str(error.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(TINY, tmp_path / name))

    shard = "model-00001-of-00002.safetensors"
    path = copy("truncated")
    with (path / shard).open("r+b") as stream:
        stream.truncate(1_000_000)
    with pytest.raises(CheckpointError, match=rf"{shard}: truncated: expected 15217928 bytes .* found 1000000"):
        open_checkpoint(path)
    path = copy("header")
    (path / shard).write_bytes(b"\x10\0\0\0\0\0\0\0" + b"not json" * 2)
    with pytest.raises(CheckpointError, match=rf"{shard}: header: expected JSON, found"):
        open_checkpoint(path)
    path = copy("offsets")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (path / shard).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=rf"{shard}: x: expected 8 bytes for F32 \[2\]"):
        open_checkpoint(path)
    path = copy("missing")
    (path / shard).unlink()
    with pytest.raises(CheckpointError, match=rf"expected the shard {shard}"):
        open_checkpoint(path)
    path = copy("misplaced")
    (path / shard).write_bytes((path / "model-00002-of-00002.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{shard}: expected the tensor "):
        open_checkpoint(path)


def test_gguf_names_cover_the_model() -> None:
    config = read_config(TINY)
    blocks = [
        f"blk.{i}.{part}"
        for i in range(8)
        for part in ["attn_norm.weight", "ssm_a", "ssm_dt.bias", "ssm_out.weight", "attn_q.weight", "ffn_up.weight"]
    ]
    names = [canonical_from_gguf(name, 8) for name in blocks]
    assert names[3] == "language_model.model.layers.0.linear_attn.out_proj.weight"
    known = QWEN3_5.text_shapes(config)
    assert sum(name in known for name in names) == 8 + 6 + 6 + 6 + 2 + 8
    assert canonical_from_gguf("output.weight", 8) == "language_model.lm_head.weight"
    assert canonical_from_gguf("blk.8.attn_q.weight", 8) == "mtp.layers.0.self_attn.q_proj.weight"
    assert canonical_from_gguf("blk.8.nextn.eh_proj.weight", 8) == "mtp.fc.weight"
    for name in known:
        assert canonical_from_gguf(gguf_from_canonical(name), 8) == name
    assert canonical_from_gguf("blk.0.surprise", 8) is None


def test_tiled_heads_become_grouped() -> None:
    """Value head j * Hk + hk of GGUF is head hk * Hv / Hk + j here; the tiny model has Hk = 2, Hv = 4, Dv = 128."""
    text = read_config(TINY).text
    heads = np.arange(4).repeat(128)
    assert grouped_from_tiled(heads, text)[::128].tolist() == [0, 2, 1, 3]
    six = replace(text, linear_num_value_heads=6)  # a ratio of 3, where the two orders are not each other's inverse
    assert grouped_from_tiled(np.arange(6), six).tolist() == [0, 2, 4, 1, 3, 5]
    assert tiled_from_grouped(grouped_from_tiled(np.arange(6), six), six).tolist() == list(range(6))
    assert grouped_from_tiled(np.stack([heads, heads]), text)[1, ::128].tolist() == [0, 2, 1, 3]
