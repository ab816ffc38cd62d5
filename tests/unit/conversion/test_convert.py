"""Conversion of the tiny checkpoint: the recipe's widths and sizes, mlx-lm as the judge, and how it fails."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from typer.testing import CliRunner

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.registry import read_config
from mlx_delta.checkpoint.safetensors import read_header
from mlx_delta.checkpoint.tensors import base_name
from mlx_delta.cli.main import app
from mlx_delta.config import Quantization
from mlx_delta.conversion.pipeline import Progress, convert
from mlx_delta.conversion.recipe import choose
from mlx_delta.conversion.report import ConvertReport
from mlx_delta.errors import ArgumentError, CheckpointError, ConvertError, OutputError, OutputExistsError
from mlx_delta.text.tokenizer import Tokenizer
from support import GOLDEN, TINY

IMATRIX = TINY / "imatrix.gguf"
LOGITS = GOLDEN / "model.safetensors"
# The recipe at base 3, by the end of a module's name.
UNSLOTH = {
    "gate_proj": 3,
    "up_proj": 3,
    "down_proj": 4,
    "embed_tokens": 5,
    "q_proj": 5,
    "k_proj": 5,
    "v_proj": 5,
    "in_proj_qkv": 5,
    "in_proj_z": 5,
    "lm_head": 6,
}


@pytest.fixture(scope="module")
def unsloth(tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    return convert(TINY, tmp_path_factory.mktemp("out") / "unsloth", recipe="unsloth", imatrix=IMATRIX)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    return convert(TINY, tmp_path_factory.mktemp("out") / "bf16", quantize=False)


def dequantized(path: Path) -> dict[str, mx.array]:
    """The text tensors of a converted directory in float32, every matrix whole."""
    config, arrays = read_config(path), mx.load(str(path / "model.safetensors"))
    assert isinstance(arrays, dict)
    result = {}
    for name in QWEN3_5.text_shapes(config):
        module, array = name.removesuffix(".weight"), arrays[name]
        if array.dtype != mx.uint32:
            array = array.astype(mx.float32)
        if f"{module}.scales" in arrays:
            width = config.quantization.get(module, config.quantization[""])
            scales, biases = (arrays[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            array = mx.dequantize(array, scales, biases, group_size=width.group_size, bits=width.bits)
        result[name] = array
    return result


def relative(found: mx.array, expected: mx.array) -> float:
    a, b = (np.array(x.astype(mx.float32), dtype=np.float64) for x in (found, expected))
    return float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean()))


def test_every_tensor_has_the_recipe_s_bits(unsloth: ConvertReport) -> None:
    config, found = read_config(unsloth.path), read_header(unsloth.path / "model.safetensors")
    predicted = 0
    for name, shape in QWEN3_5.text_shapes(config).items():
        module = name.removesuffix(".weight")
        bits = UNSLOTH.get(module.rpartition(".")[2])
        if bits is None:
            assert found[name].dtype == mx.bfloat16
            assert found[name].shape == shape
            predicted += 2 * math.prod(shape)
            continue
        assert config.quantization.get(module, config.quantization[""]) == Quantization(bits, 64), module
        assert found[name].dtype == mx.uint32
        assert found[name].shape == (shape[0], shape[1] * bits // 32)
        assert found[f"{module}.scales"].dtype == found[f"{module}.biases"].dtype == mx.bfloat16
        predicted += math.prod(shape) * bits // 8 + 4 * math.prod(shape) // 64
    vision = [info for name, info in found.items() if name.startswith("vision_tower.")]
    assert all(info.dtype == mx.bfloat16 for info in vision)
    others = [*vision, *(info for name, info in found.items() if name.startswith("mtp."))]
    assert sum(info.nbytes for info in found.values()) == predicted + sum(info.nbytes for info in others)
    assert len(found) == unsloth.tensors == sum(row.tensors for row in unsloth.components)
    assert abs(unsloth.bytes_written / unsloth.bytes_predicted - 1) < 1e-3
    assert unsloth.bytes_written == (unsloth.path / "model.safetensors").stat().st_size
    assert not unsloth.warnings


def test_output_is_a_checkpoint_of_ours(unsloth: ConvertReport) -> None:
    tensors = open_checkpoint(unsloth.path).tensors
    assert all(tensor.name == tensor.source_name for tensor in tensors.values())
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "vocab.json",
    ):
        assert (unsloth.path / name).read_bytes() == (TINY / name).read_bytes()
    with pytest.raises(ConvertError, match=r"expected an unquantized checkpoint, found .*\.scales"):
        convert(unsloth.path, unsloth.path.parent / "again")


def test_named_templates_go_along(tmp_path: Path) -> None:
    source = shutil.copytree(TINY, tmp_path / "in")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    out = convert(source, tmp_path / "out", bits=4).path
    for path in (source, out):
        assert Tokenizer.from_dir(path).chat_templates["tool_use"] == "T"
        assert Tokenizer.of_checkpoint(open_checkpoint(path)).chat_templates["tool_use"] == "T"


def test_mlx_lm_agrees_on_the_quantized_model(unsloth: ConvertReport, bf16: ConvertReport) -> None:
    """mlx-lm loads it strictly; its packed matrices mean what ours, dequantized, mean: exactly in float32."""
    ids = mx.load(str(LOGITS))["0.ids"][None]
    quantized, whole = load_model(unsloth.path)[0], load_model(bf16.path)[0]
    original, found = whole(ids), quantized(ids)
    whole.load_weights(list(dequantized(unsloth.path).items()))
    expected = whole(ids)
    quantized.set_dtype(mx.float32)
    assert relative(quantized(ids), expected) < 1e-4
    assert relative(found, expected) < 3e-2  # activations in bfloat16
    assert relative(found, original) < 0.3  # 3 bits change the answer, but not beyond recognition


def test_bf16_conversion_gives_the_golden_logits(bf16: ConvertReport) -> None:
    golden, model = mx.load(str(LOGITS)), load_model(bf16.path)[0]
    assert isinstance(golden, dict)
    for prompt in ("0", "3", "7"):
        found = model(golden[f"{prompt}.ids"][None])[0, -48:]
        assert relative(found, golden[f"{prompt}.logits"]) < 2e-2
    assert "quantization" not in json.loads((bf16.path / "config.json").read_text())


def test_mtp_head_is_kept_or_dropped(tmp_path: Path, bf16: ConvertReport) -> None:
    """Its norms final, its matrices in 4 bits; mlx-lm, which knows none, has the same logits with it and without."""
    report = convert(TINY, tmp_path / "out", bits=3)
    source, found = open_checkpoint(TINY).source, mx.load(str(report.path / "model.safetensors"))
    assert isinstance(found, dict)
    stored = [name for name in source.tensors if name.startswith("mtp.")]
    assert {base_name(name) for name in found if name.startswith("mtp.")} == set(stored)
    assert read_config(report.path).module_quantization("mtp.fc") == Quantization(4, 64)
    shifted = (source.load("mtp.norm.weight").astype(mx.float32) + 1).astype(mx.bfloat16)
    assert mx.array_equal(found["mtp.norm.weight"], shifted)
    plain = convert(TINY, tmp_path / "plain", bits=3, keep_mtp=False)
    assert plain.tensors == report.tensors - len(stored) - 2 * 8
    assert plain.bits_per_weight == report.bits_per_weight
    ids = mx.load(str(LOGITS))["0.ids"][None]
    assert mx.array_equal(load_model(report.path)[0](ids), load_model(plain.path)[0](ids))
    configs = [json.loads((each.path / "config.json").read_text()) for each in (report, plain)]
    assert [config["text_config"]["mtp_num_hidden_layers"] for config in configs] == [1, 0]  # no head, none promised
    whole = mx.load(str(bf16.path / "model.safetensors"))
    assert mx.array_equal(whole["mtp.fc.weight"], source.load("mtp.fc.weight"))
    headless = convert(bf16.path, tmp_path / "headless", quantize=False, keep_mtp=False).path
    assert not [name for name in mx.load(str(headless / "model.safetensors")) if name.startswith("mtp.")]
    with pytest.raises(ArgumentError, match=r"keep_mtp: expected mtp_num_hidden_layers in the config .* found none"):
        convert(headless, tmp_path / "again", keep_mtp=True)
    with pytest.raises(CheckpointError, match=r"mtp\.layers\.0\.self_attn\.q_proj\.weight: expected .* found nothing"):
        convert(edited(tmp_path / "in", {"intermediate_size": 640}, {"mlp": 640}, ("mtp.",)), tmp_path, keep_mtp=True)


def test_uniform_width_loads_in_mlx_lm(tmp_path: Path) -> None:
    report = convert(TINY, tmp_path / "out", bits=8, group_size=32)
    section = json.loads((report.path / "config.json").read_text())["quantization"]
    assert {name: width for name, width in section.items() if not name.startswith("mtp.")} == {
        "group_size": 32,
        "bits": 8,
        "mode": "affine",
    }
    kept = {"conv1d, A_log, dt_bias", "norms", "vision", "mtp"}
    assert all((row.bits == "8") != (row.component in kept) for row in report.components)
    golden = mx.load(str(LOGITS))
    found = load_model(report.path)[0](golden["0.ids"][None])[0]
    assert relative(found, golden["0.logits"]) < 3e-2


def test_folds_lower_the_error(unsloth: ConvertReport) -> None:
    assert len(unsloth.folds) == 3 * 8
    assert all(fold.error <= fold.plain_error for fold in unsloth.folds)
    assert sum(fold.error for fold in unsloth.folds) < sum(fold.plain_error for fold in unsloth.folds)


def test_widths_are_rounded_up() -> None:
    module = "language_model.model.layers.0.mlp.{}_proj"
    recipe = choose("unsloth", 5, 64, QWEN3_5.recipes)
    widths = [recipe.width(name) for name in (module.format("up"), module.format("down"), "language_model.lm_head")]
    assert [width and width.bits for width in widths] == [5, 6, 8]
    found = choose("unsloth", 6, 64, QWEN3_5.recipes).width(module.format("down"))
    assert found is not None
    assert found.bits == 8
    assert recipe.width("vision_tower.blocks.0.mlp.up_proj") is None
    assert QWEN3_5.components.of("language_model.model.layers.0.linear_attn.norm.weight") == "norms"


def test_arguments_are_checked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArgumentError, match="imatrix: expected one for the recipe unsloth"):
        convert(TINY, out, recipe="unsloth")
    with pytest.raises(ArgumentError, match=r"recipe: expected unsloth or auto, found best"):
        convert(TINY, out, recipe="best")
    with pytest.raises(ArgumentError, match=r"bits: expected one of .* found 7"):
        convert(TINY, out, bits=7)
    with pytest.raises(ArgumentError, match=r"group_size: expected one of .* found 48"):
        convert(TINY, out, group_size=48)
    with pytest.raises(ArgumentError, match="bits: expected it with quantize"):
        convert(TINY, out, quantize=False, bits=4)
    assert not list(tmp_path.iterdir())


def test_k_must_be_whole_groups(tmp_path: Path) -> None:
    path = edited(tmp_path / "in", {"intermediate_size": 672}, {"mlp": 672})
    with pytest.raises(
        ConvertError, match=r"down_proj\.weight: expected a multiple of the group size 128 along K, found 672"
    ):
        convert(path, tmp_path / "out", group_size=128)


def edited(path: Path, text: dict[str, int], widths: dict[str, int], without: tuple[str, ...] = ()) -> Path:
    """The tiny checkpoint with its MLPs made ``widths["mlp"]`` wide, ``without`` tensors of those prefixes."""
    path.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"] |= text
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "tokenizer.json", path)
    source = open_checkpoint(TINY).source
    arrays = {name: source.load(name) for name in source.tensors if not name.startswith(without or "\0")}
    for name in arrays:
        if ".mlp.down_proj" in name:
            arrays[name] = mx.zeros((256, widths["mlp"]))
        elif ".mlp.gate_proj" in name or ".mlp.up_proj" in name:
            arrays[name] = mx.zeros((widths["mlp"], 256))
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    return path


def test_nan_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = open_checkpoint(TINY).source
    arrays = {name: source.load(name) for name in source.tensors}
    name = "model.language_model.layers.5.mlp.down_proj.weight"
    arrays[name] = mx.where(mx.arange(640) == 3, mx.nan, arrays[name])
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(TINY / file, bad)
    mx.save_safetensors(str(bad / "model.safetensors"), arrays)
    with pytest.raises(CheckpointError, match=r"layers\.5\.mlp\.down_proj\.weight: expected finite weights"):
        convert(bad, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_truncated_shard(tmp_path: Path) -> None:
    path = Path(shutil.copytree(TINY, tmp_path / "in"))
    os.truncate(path / "model-00002-of-00002.safetensors", 5_000_000)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: truncated"):
        convert(path, tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["in"]


def test_existing_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(TINY, out, bits=4)
    size = (out / "model.safetensors").stat().st_size
    with pytest.raises(OutputExistsError, match="expected a new directory"):
        convert(TINY, out, bits=8)

    def stop(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(TINY, out, bits=8, force=True, progress=stop)
    assert (out / "model.safetensors").stat().st_size == size
    convert(TINY, out, bits=8, force=True)
    assert (out / "model.safetensors").stat().st_size > size
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_does_not_delete_what_is_no_model(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"without a config\.json"):
        convert(TINY, precious, force=True)
    for out in (TINY, TINY / "inside", TINY.parent):
        with pytest.raises(OutputError, match="apart from the input"):
            convert(TINY, out, force=True)
    assert (precious / "letter.txt").read_text() == "dear"


def test_killed_half_way(tmp_path: Path) -> None:
    """kill -9 leaves no directory with a config.json; the next conversion cleans up."""
    script = f"""
import os, signal
from mlx_delta.conversion.pipeline import convert
def kill(step):
    if step.nbytes > step.total_nbytes // 2:
        os.kill(os.getpid(), signal.SIGKILL)
convert({str(TINY)!r}, {str(tmp_path / "out")!r}, progress=kill)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("config.json"))
    convert(TINY, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_command_line(tmp_path: Path) -> None:
    arguments = ["convert", "-i", str(TINY), "-o", str(tmp_path / "out"), "-q", "--q-bits", "4"]
    good = CliRunner().invoke(app, arguments)
    assert good.exit_code == 0, good.output
    assert "gate, up" in good.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "error: " in again.output
    assert "Traceback" not in again.output
