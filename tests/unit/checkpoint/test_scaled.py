"""Checkpoints in FP8 and NVFP4, dense and with experts one by one, against the values that their bits stand for."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
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
# A weight by its name -> what is stored of it, by name, and what that stands for.
Form = Callable[[str, mx.array], tuple[Arrays, mx.array]]
RNG = np.random.default_rng(16)


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


def fp8_blocks(name: str, weight: mx.array) -> tuple[Arrays, mx.array]:
    values, scales, expected = in_blocks(weight)
    return {name: values, f"{name}_scale_inv": scales}, expected


def fp8_by(shape: Callable[[int], tuple[int, ...]]) -> Form:
    """One scale for all, or one a row."""

    def form(name: str, weight: mx.array) -> tuple[Arrays, mx.array]:
        values = RNG.integers(0, 0x7F, weight.shape).astype(np.uint8)
        scales = mx.array(RNG.uniform(0.001, 0.01, shape(weight.shape[0])).astype(np.float32)).astype(mx.bfloat16)
        by = np.array(scales.astype(mx.float32)).reshape(-1, 1)
        return {name: mx.array(values), f"{name}_scale": scales}, rounded(e4m3(values) * by)

    return form


def nvfp4(packed: str, overall: str, scaled: Callable[[np.ndarray, np.float32], np.ndarray]) -> Form:
    """All codes of e2m1, whose first in a byte is in the low bits, and all scales of e4m3."""

    def form(name: str, weight: mx.array) -> tuple[Arrays, mx.array]:
        rows, columns = weight.shape
        codes = RNG.integers(0, 16, (rows, columns)).astype(np.uint8)
        scales = RNG.integers(0, 0x7F, (rows, columns // 16)).astype(np.uint8)
        by = np.float32(RNG.uniform(0.1, 10))
        magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        values = np.where(codes & 8, -1, 1).astype(np.float32) * magnitudes[codes & 7]
        values *= np.repeat(e4m3(scales), 16, axis=1)
        stored = {
            f"{name}{packed}": mx.array(codes[:, ::2] | codes[:, 1::2] << 4),
            f"{name}_scale": mx.array(scales),
            f"{name}{overall}": mx.array(np.array([by])) if overall == "_global_scale" else mx.array(by),
        }
        activations = "input_global_scale" if overall == "_global_scale" else "input_scale"
        return {**stored, name.replace("weight", activations): mx.array(by)}, rounded(scaled(values, by))

    return form


MODELOPT = nvfp4("", "_scale_2", lambda values, by: values * by)
COMPRESSED_TENSORS = nvfp4("_packed", "_global_scale", lambda values, by: values / by)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def e4m3(bits: np.ndarray) -> np.ndarray:
    """Positive, finite ones: 4 bits of exponent with a bias of 7, 3 of mantissa."""
    exponent, mantissa = (bits >> 3).astype(np.int32), (bits & 7).astype(np.float32) / 8
    normal = np.ldexp(1 + mantissa, exponent - 7)
    return np.where(exponent == 0, np.ldexp(mantissa, -6), normal).astype(np.float32)


def rounded(values: np.ndarray) -> mx.array:
    assert values.dtype == np.float32
    return mx.array(values).astype(mx.bfloat16)


def write_scaled(
    source: Path,
    out: Path,
    edit: Callable[[Arrays], object] = lambda arrays: None,
    form: Form = fp8_blocks,
    section: Mapping[str, object] = FP8,
) -> Arrays:
    """A checkpoint of the matrices of ``source``'s layers in a form; what each of them stands for."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    arrays, expected = Arrays(), Arrays()
    for file in sorted(source.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            arrays[name] = array
            if name.endswith("_proj.weight") and ".layers." in name and array.ndim == 2:
                del arrays[name]
                stored, expected[name] = form(name, array)
                arrays |= stored
    edit(arrays)
    header, at = {}, 0
    codes = {mx.uint8: "F8_E4M3", mx.bfloat16: "BF16", mx.float32: "F32"}
    for name, array in arrays.items():
        end = at + array.nbytes
        is_fp4 = name.endswith("_packed") or f"{name}_scale_2" in arrays
        header[name] = {
            "dtype": "U8" if is_fp4 and array.dtype == mx.uint8 else codes[array.dtype],
            "shape": array.shape,
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            stream.write(np.array(mx.contiguous(array).reshape(-1).view(mx.uint8)).tobytes())
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = section
    (out / "config.json").write_text(json.dumps(config))
    return expected


def test_dense(tmp_path: Path) -> None:
    expected = write_scaled(TINY, tmp_path / "fp8")
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


@pytest.mark.parametrize(
    ("form", "section"),
    [
        (fp8_blocks, FP8),
        (MODELOPT, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        (COMPRESSED_TENSORS, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
        (fp8_by(lambda rows: (rows, 1)), {"quant_method": "compressed-tensors", "format": "mixed-precision"}),
        (fp8_by(lambda rows: ()), {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}),
    ],
    ids=["fp8", "modelopt", "compressed-tensors", "fp8-rows", "fp8-one"],
)
def test_experts_one_by_one(tmp_path: Path, form: Form, section: Mapping[str, object]) -> None:
    source = write_experts(tmp_path / "source", one_by_one=True)
    expected = write_scaled(source, tmp_path / "scaled", form=form, section=section)
    tensors = open_checkpoint(tmp_path / "scaled").tensors
    for name in ("shared_expert.down_proj", "shared_expert.up_proj"):
        found = tensors[f"language_model.model.layers.1.mlp.{name}.weight"].load()
        assert mx.array_equal(found, expected[f"model.language_model.layers.1.mlp.{name}.weight"])
    stacked = tensors["language_model.model.layers.1.mlp.switch_mlp.up_proj.weight"]
    for e, found in enumerate(stacked.load()):
        assert mx.array_equal(found, expected[f"model.language_model.layers.1.mlp.experts.{e}.up_proj.weight"])


@pytest.mark.parametrize(
    ("form", "name", "value", "expected"),
    [
        (
            fp8_blocks,
            "_scale_inv",
            mx.zeros((1, 1)),
            r"up_proj\.weight_scale_inv: expected \[5, 2\], found \[1, 1\]",
        ),
        (
            fp8_blocks,
            "",
            mx.zeros((640, 256)),
            r"up_proj\.weight: expected FP8 \[N, K\] beside its scales, found .*float32 \[640, 256",
        ),
        (
            fp8_by(lambda rows: ()),
            "_scale",
            mx.zeros((3,)),
            r"_scale: expected \[5, 2\] or \[640, 1\] or \[640\] or \[1\] or \[\], found \[3\]",
        ),
        (MODELOPT, "_scale", mx.zeros((640, 8), mx.uint8), r"weight_scale: expected FP8 \[640, 16\], found .*\[640, 8"),
        (
            COMPRESSED_TENSORS,
            "_global_scale",
            None,
            "expected .*weight_scale_2 beside it, found nothing",
        ),
        (COMPRESSED_TENSORS, "_scale", None, "expected .*weight_scale beside it, found nothing"),
        (
            COMPRESSED_TENSORS,
            "_packed",
            mx.zeros((640, 32)),
            r"weight_packed: expected NVFP4, uint8 .*, found .*float32 \[640, 32\]",
        ),
        (MODELOPT, "", mx.zeros((640, 4), mx.uint8), r"weight: expected NVFP4, .*, found .*uint8 \[640, 4\]"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, form: Form, name: str, value: mx.array | None, expected: str
) -> None:
    up = "model.language_model.layers.0.mlp.up_proj.weight"

    def edit(arrays: Arrays) -> None:
        del arrays[up + name]
        if value is not None:
            arrays[up + name] = value

    write_scaled(TINY, tmp_path / "scaled", edit, form)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(tmp_path / "scaled")


def test_scales_of_inputs_are_refused(tmp_path: Path) -> None:
    """AWQ of ModelOpt: the weights alone would be another model."""
    name = "model.language_model.layers.0.mlp.up_proj.pre_quant_scale"
    write_scaled(TINY, tmp_path / "scaled", lambda arrays: arrays.update({name: mx.ones(256)}))
    with pytest.raises(CheckpointError, match=r"up_proj\.pre_quant_scale: expected weights with scales alone, found"):
        open_checkpoint(tmp_path / "scaled")
