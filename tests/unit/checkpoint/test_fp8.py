"""FP8 checkpoints, dense and with experts one by one, against the values that they were made of."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import CheckpointError
from mlx_delta.loading import load_model
from support import TINY
from support.experts import write_experts

Arrays = dict[str, mx.array]


def in_blocks(weight: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """(e4m3 bits, a scale for each block of 128 x 128, what the two stand for), by numpy."""
    rows, columns = (-(-n // 128) for n in weight.shape)
    whole = np.zeros((128 * rows, 128 * columns), np.float32)
    whole[: weight.shape[0], : weight.shape[1]] = np.array(weight.astype(mx.float32))
    blocks = whole.reshape(rows, 128, columns, 128)
    scales = np.maximum(np.abs(blocks).max(axis=(1, 3)), 1e-12).astype(np.float32) / 448
    packed = mx.to_fp8(mx.array((blocks / scales[:, None, :, None]).reshape(whole.shape)))
    stored = np.array(mx.from_fp8(packed, mx.float32)).reshape(blocks.shape) * scales[:, None, :, None]
    n, k = weight.shape
    return packed[:n, :k], mx.array(scales), mx.array(stored.reshape(whole.shape)[:n, :k]).astype(mx.bfloat16)


def write_fp8(source: Path, out: Path, edit: Callable[[Arrays], object] = lambda arrays: None) -> Arrays:
    """An FP8 checkpoint of the matrices of ``source``'s layers; what each of them stands for."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    arrays, expected = Arrays(), Arrays()
    for file in sorted(source.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            arrays[name] = array
            if name.endswith("_proj.weight") and ".layers." in name and array.ndim == 2:
                arrays[name], arrays[f"{name}_scale_inv"], expected[name] = in_blocks(array)
    edit(arrays)
    header, at = {}, 0
    codes = {mx.uint8: "F8_E4M3", mx.bfloat16: "BF16", mx.float32: "F32"}
    for name, array in arrays.items():
        end = at + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": array.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            stream.write(np.array(mx.contiguous(array).reshape(-1).view(mx.uint8)).tobytes())
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (out / "config.json").write_text(json.dumps(config))
    return expected


def test_dense(tmp_path: Path) -> None:
    expected = write_fp8(TINY, tmp_path / "fp8")
    tensors = open_checkpoint(tmp_path / "fp8").tensors
    for name, array in expected.items():
        if name.startswith("model.language_model."):
            canonical = name.replace("model.language_model", "language_model.model")
            assert mx.array_equal(tensors[canonical].load(), array), name
    convert(tmp_path / "fp8", tmp_path / "q4", bits=4)
    assert json.loads((tmp_path / "q4" / "config.json").read_text())["quantization_config"]["bits"] == 4
    convert(tmp_path / "fp8", tmp_path / "bf16", quantize=False)
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert load_model(tmp_path / "bf16").generate("import", max_new_tokens=4).text()


def test_experts_one_by_one(tmp_path: Path) -> None:
    expected = write_fp8(write_experts(tmp_path / "source", one_by_one=True), tmp_path / "fp8")
    stacked = open_checkpoint(tmp_path / "fp8").tensors["language_model.model.layers.1.mlp.switch_mlp.up_proj.weight"]
    for e, found in enumerate(stacked.load()):
        assert mx.array_equal(found, expected[f"model.language_model.layers.1.mlp.experts.{e}.up_proj.weight"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("_scale_inv", mx.zeros((1, 1)), r"up_proj\.weight_scale_inv: expected \[5, 2\], found \[1, 1\]"),
        (
            "",
            mx.zeros((640, 256)),
            r"up_proj\.weight: expected FP8 \[N, K\] beside its scales, found .*float32 \[640, 256",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, value: mx.array, expected: str) -> None:
    up = "model.language_model.layers.0.mlp.up_proj.weight"
    write_fp8(TINY, tmp_path / "fp8", lambda arrays: arrays.update({up + name: value}))
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(tmp_path / "fp8")
