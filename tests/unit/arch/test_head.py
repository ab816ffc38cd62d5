"""An MTP head in a directory of its own, as mlx-vlm writes it: the same head; and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.arch.head import with_head
from mlx_delta.config import Quantization
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.loading import load_model
from support import TINY
from support.experts import write_experts

Arrays = dict[str, mx.array]


def stored(path: Path) -> Arrays:
    """The head's tensors as the files of a checkpoint have them, w of 1 + w."""
    found: Arrays = {}
    for file in sorted(path.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        found |= {name: array for name, array in loaded.items() if name.startswith("mtp.")}
    return found


def split(path: Path) -> Arrays:
    """Without "mtp.", norms 1 + w (in float32 here, so that nothing is rounded), experts stacked."""
    found = {name.removeprefix("mtp."): array for name, array in stored(path).items()}
    found = {n: array.astype(mx.float32) + 1 if array.ndim == 1 else array for n, array in found.items()}
    for part in ("gate_proj", "up_proj", "down_proj"):
        single = [name for name in found if ".experts." in name and name.endswith(f"{part}.weight")]
        if single:
            ordered = sorted(single, key=lambda name: int(name.split(".experts.")[1].partition(".")[0]))
            found[f"layers.0.mlp.switch_mlp.{part}.weight"] = mx.stack([found.pop(name) for name in ordered])
    return found


def write(path: Path, arrays: Arrays, model: Path = TINY, **config: Any) -> Path:
    path.mkdir(parents=True)
    text = json.loads((model / "config.json").read_text())["text_config"]
    whole = {"model_type": "qwen3_5_mtp", "block_size": 3, "text_config": text, **config}
    (path / "config.json").write_text(json.dumps(whole))
    mx.save_safetensors(str(path / "model.safetensors"), arrays, {"format": "mlx"})
    return path


def head_of(checkpoint: Checkpoint) -> Arrays:
    return {name: tensor.load() for name, tensor in checkpoint.mtp_tensors().items()}


def same(a: Mapping[str, mx.array], b: Mapping[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(bool(mx.array_equal(a[name], b[name])) for name in a)


def test_a_head_split_off_is_the_head(tmp_path: Path) -> None:
    """Under either kind of names; of a dense model and of one with experts; and out of the original checkpoint."""
    experts = write_experts(tmp_path / "experts", one_by_one=True)
    for model, name in ((TINY, "dense"), (experts, "experts-head")):
        checkpoint = open_checkpoint(model)
        expected = head_of(checkpoint)
        split_off = write(tmp_path / name, split(model), model)
        assert same(head_of(with_head(checkpoint, split_off)), expected)
        renamed = write(tmp_path / f"{name}-raw", stored(model), model)
        assert same(head_of(with_head(checkpoint, renamed)), expected)
        assert same(head_of(with_head(checkpoint, model)), expected)


def test_it_drafts_for_a_model_without_one(tmp_path: Path) -> None:
    bare = convert(TINY, tmp_path / "bare", bits=4, keep_mtp=False).path
    assert load_model(bare).network.mtp is None
    head = write(tmp_path / "head", split(TINY))
    ids = [list(range(40, 70))]
    expected = load_model(bare, "float32", mtp=TINY).mtp_logits(ids)
    assert mx.array_equal(load_model(bare, "float32", mtp=str(head)).mtp_logits(ids), expected)
    head.rename(bare / "mtp")  # where it is found without being named
    model = load_model(bare, "float32")
    assert mx.array_equal(model.mtp_logits(ids), expected)
    plain, drafted = (
        model.generate("def f(", max_new_tokens=24, temperature=0, speculate=drafts) for drafts in ("off", 3)
    )
    assert drafted.text() == plain.text()
    assert drafted.accepted_tokens > 0


def test_its_own_widths_count(tmp_path: Path) -> None:
    arrays, plain = split(TINY), split(TINY)
    for name in [n for n, array in arrays.items() if array.ndim == 2]:
        module, (bits, group) = name.removesuffix(".weight"), (8, 32) if name == "fc.weight" else (4, 64)
        packed = mx.quantize(plain[name].astype(mx.float32), group, bits)
        arrays[name], arrays[f"{module}.scales"], arrays[f"{module}.biases"] = packed
        plain[name] = mx.dequantize(*packed, group, bits)
    widths = {"group_size": 64, "bits": 4, "mode": "affine", "fc": {"group_size": 32, "bits": 8}}
    model = convert(TINY, tmp_path / "model", bits=3, group_size=128).path
    head = write(tmp_path / "head", arrays, quantization=widths, quantization_config=widths)
    found = load_model(model, "float32", mtp=head)
    assert found.config.module_quantization("mtp.fc") == Quantization(8, 32)
    assert found.config.module_quantization("mtp.layers.0.mlp.up_proj") == Quantization(4, 64)
    ids = [list(range(40, 70))]
    expected = load_model(model, "float32", mtp=write(tmp_path / "plain", plain)).mtp_logits(ids)
    assert mx.abs(found.mtp_logits(ids) - expected).max() < 1e-3


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model, arrays = open_checkpoint(TINY), split(TINY)
    text = json.loads((TINY / "config.json").read_text())["text_config"]
    wrong = {
        "hidden_size": (512, "head/config.json: hidden_size: expected 256, as .*tiny has, found 512"),
        "vocab_size": (4160, "head/config.json: vocab_size: expected 4096, as .*tiny has, found 4160"),
        "num_key_value_heads": (2, "head/config.json: num_key_value_heads: expected 1, as .*tiny has, found 2"),
    }
    for key, (value, expected) in wrong.items():
        with pytest.raises(ConfigError, match=expected):
            with_head(model, write(tmp_path / key / "head", arrays, text_config={**text, key: value}))
    with pytest.raises(ConfigError, match=r"no-text/config.json: .*: expected a positive integer, found nothing"):
        with_head(model, write(tmp_path / "no-text", arrays, text_config=None))
    with pytest.raises(ConfigError, match=r"quantization: expected mode 'affine', found 'mxfp8'"):
        with_head(model, write(tmp_path / "mxfp8", arrays, quantization={"mode": "mxfp8", "bits": 8, "group_size": 32}))
    less = {name: array for name, array in arrays.items() if name != "fc.weight"}
    with pytest.raises(CheckpointError, match=r"mtp.fc.weight: expected \[256, 512\], found nothing"):
        with_head(model, write(tmp_path / "less", less))
    headless = convert(TINY, tmp_path / "headless", quantize=False, keep_mtp=False).path
    with pytest.raises(CheckpointError, match=r"headless: expected an MTP head, found no tensors named mtp\.\*"):
        with_head(model, headless)
    with pytest.raises(ConfigError, match="nowhere: expected a model directory, found nothing"):
        with_head(model, tmp_path / "nowhere")
