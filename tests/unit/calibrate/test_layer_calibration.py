"""Conversion with ``--calibrate``: what is measured, every recipe and source, the same bits again, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.calibrate import sensitivity
from mlx_delta.calibrate.chunks import read_chunks
from mlx_delta.calibrate.importance import measure_importance
from mlx_delta.calibrate.layers import LayerCalibration, layer_calibration
from mlx_delta.cli.main import app
from mlx_delta.conversion.moments import damping
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from support.gguf_files import write_gguf


@pytest.fixture(scope="module")
def text(golden: Path) -> Path:
    return golden / "heldout.txt"


def calibration(source: Path, text: Path) -> LayerCalibration:
    return layer_calibration(source, [text], context=64, max_chunks=2)


def stored(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path / "model.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def same(a: Path, b: Path) -> bool:
    first, second = stored(a), stored(b)
    return first.keys() == second.keys() and all(mx.array_equal(first[name], second[name]) for name in first)


def test_what_matrices_read(tiny: Path, text: Path) -> None:
    """Of every matrix the importance that the run over the whole model finds, but for bfloat16 between the layers; and
    a model in which nothing was quantized lacks nothing."""
    model = load_model(tiny, "float32")
    run = measure_importance(model, read_chunks([text], model.tokenizer, 64, 2))
    config, tensors = model.config, open_checkpoint(tiny).tensors
    ours, found = calibration(tiny, text), set()
    names = list(QWEN3_5.text_shapes(config))
    parts = [names[0], *(f"language_model.model.layers.{i}." for i in range(config.text.num_layers)), *names[-2:]]
    for part in parts:
        arrays = {name: tensors[name].load() for name in names if name.startswith(part)}
        ours.begin(part, arrays, {})
        for name, array in arrays.items():
            module = name.removesuffix(".weight")
            feedback = ours.feedback(module)
            ours.became(module, {name: array})
            if feedback is None:
                continue
            found.add(module)
            u, d, places = (np.array(each) for each in (feedback.upper, feedback.diagonal, feedback.order))
            importance = np.empty_like(d)
            importance[places] = d + np.triu(u, 1) ** 2 @ d
            expected = run.sums[module] / run.tokens
            importance -= damping(expected, run.tokens)
            assert np.sqrt(((importance - expected) ** 2).mean() / (expected**2).mean()) < 0.03, module
            assert not feedback.lack.any().item(), module
    assert found == run.sums.keys()


def test_what_was_lost_is_made_up_for(tiny: Path, text: Path) -> None:
    """down_proj of a layer whose other matrices lost a tenth of their rows restores the stream, as far as it can.

    Against what is kept of it where nothing is restored.
    """
    config, tensors = open_checkpoint(tiny).config, open_checkpoint(tiny).tensors
    prefix = "language_model.model.layers.0."
    embedding, down = "language_model.model.embed_tokens.weight", f"{prefix}mlp.down_proj"
    lost = []
    for restored in (False, True):
        run = layer_calibration(tiny, [text], context=256, max_chunks=8)
        run.begin(embedding, {embedding: tensors[embedding].load()}, {})
        run.became(embedding.removesuffix(".weight"), {embedding: tensors[embedding].load()})
        arrays = {name: tensors[name].load() for name in QWEN3_5.text_shapes(config) if name.startswith(prefix)}
        run.begin(prefix, arrays, {})
        for name, array in arrays.items():
            module = name.removesuffix(".weight")
            feedback = run.feedback(module)
            if module == down and restored and feedback is not None:
                (array,) = feedback.restored(array)
            elif array.ndim == 2 and module != down:
                array = mx.where((mx.arange(array.shape[0]) % 10 > 0)[:, None], array, 0)
            run.became(module, {name: array})
        states = zip(run._original, run._quantized, strict=True)
        lost.append(sum(float(np.square(np.array(a.astype(mx.float32) - b)).sum()) for a, b in states))
    assert lost[1] < 0.5 * lost[0]


def test_sources_and_recipes(tiny: Path, text: Path, tmp_path: Path) -> None:
    """A GGUF file gives the same bits as safetensors, in groups of unequal size that share their inputs too."""
    gguf = write_gguf(tmp_path / "tiny.gguf")
    widths = tmp_path / "widths.json"
    widths.write_text(json.dumps({"*.mlp.up_proj": {"bits": 2, "group_size": 32}, "*.o_proj": 6, "*.lm_head": None}))
    for source, out in ((tiny, tmp_path / "st"), (gguf, tmp_path / "gguf")):
        convert(source, out, bits=3, overrides=widths, calibration=calibration(source, text))
    first, second = stored(tmp_path / "st"), stored(tmp_path / "gguf")
    assert all(mx.array_equal(array, second[name]) for name, array in first.items() if name in second)
    assert all(name.startswith("vision_tower.") for name in first.keys() - second.keys())
    assert "language_model.lm_head.scales" not in first
    up = first["language_model.model.layers.0.mlp.up_proj.scales"]
    assert up.shape[1] == 256 // 32
    klds = {f"language_model.model.layers.0.mlp.{m}_proj": {3: 0.2, 8: 0.01} for m in ("gate", "up")}
    auto = {"recipe": "auto", "target_bpw": 15.8, "sensitivity": klds}
    convert(tiny, tmp_path / "auto", calibration=calibration(tiny, text), **auto)  # type: ignore[arg-type]
    load_model(tmp_path / "auto").forward([[1, 2, 3]])


def test_same_bits_on_any_number_of_threads(tiny: Path, text: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from mlx_delta.calibrate.layers import layer_calibration
from mlx_delta.conversion.pipeline import convert
import sys
run = layer_calibration({str(tiny)!r}, [Path({str(text)!r})], context=64, max_chunks=2)
convert({str(tiny)!r}, sys.argv[1], recipe="unsloth", calibration=run)
"""
    for threads in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MLX_DELTA_THREADS": threads}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / threads)], env=environment, check=True)
    assert same(tmp_path / "1", tmp_path / "2")


def test_interrupted_run_leaves_nothing(tiny: Path, text: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 2 * 8 * 4  # chunks, layers, parts of a layer
        if done == 13:
            raise KeyboardInterrupt

    run = layer_calibration(tiny, [text], context=64, max_chunks=2, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        convert(tiny, tmp_path / "out", bits=4, calibration=run)
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_not_finite_are_named(tiny: Path, text: Path, tmp_path: Path) -> None:
    """Weights that overflow the activations: layer 3's MLP is multiplied by 1e38."""
    source = open_checkpoint(tiny).source
    (tmp_path / "in").mkdir()
    for name, content in source.side_files().items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "config.json").write_bytes((tiny / "config.json").read_bytes())
    arrays = {name: source.load(name) for name in source.tensors}
    name = "model.language_model.layers.3.mlp.up_proj.weight"
    arrays[name] = mx.sign(arrays[name]) * 3e38
    mx.save_safetensors(str(tmp_path / "in" / "model.safetensors"), arrays)
    with pytest.raises(ValueError, match=r"layers\.3\.mlp\.down_proj: expected finite inputs, found NaN or infinity"):
        convert(tmp_path / "in", tmp_path / "out", bits=4, calibration=calibration(tmp_path / "in", text))
    assert [left.name for left in tmp_path.iterdir()] == ["in"]


def test_command_line(tiny: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["convert", "-i", str(tiny), "-o", str(tmp_path / "out")]
    calibrated = ["--calibrate", str(text), "--max-chunks", "1", "--context", "32"]
    done = CliRunner().invoke(app, [*arguments, "-q", "--q-recipe", "unsloth", *calibrated])
    assert done.exit_code == 0, done.output
    for wrong, message in (
        (calibrated, "--calibrate: expected it with quantize, found quantize=False"),
        (["-q", *calibrated, "--no-fit"], "--calibrate: expected the fit with it, found fit=False"),
        (["-q", *calibrated[:2], "--max-chunks", "0"], "--max-chunks: expected at least 1, found 0"),
        (["-q", *calibrated[:2], "--context", "100000"], "expected at least a chunk of 100000 tokens, found"),
        (["-q", "--calibrate", str(tmp_path / "absent.txt")], "absent.txt"),
        (
            ["-q", "--q-recipe", "unsloth"],
            "--imatrix-path: expected one for the recipe unsloth (`mlx-delta",
        ),
    ):
        refused = CliRunner().invoke(app, [*arguments, "--force", *wrong])
        assert refused.exit_code == 1, wrong
        assert message in refused.output.replace("\n", ""), refused.output
    with pytest.raises(ArgumentError, match="awq_ratio: expected an imatrix with it"):
        convert(tiny, tmp_path / "other", bits=4, awq_ratio=0.5)


def test_auto_measures_a_gguf_file(tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it measures safetensors, without --sensitivity: what is measured on is the model that they give."""
    measured: list[LanguageModel] = []

    def measure(model: LanguageModel, *_: object, **__: object) -> dict[str, dict[int, float]]:
        measured.append(model)
        return {"language_model.lm_head": {4: 0.1, 8: 0.01}}

    monkeypatch.setattr(sensitivity, "measure_sensitivity", measure)
    gguf = write_gguf(tmp_path / "tiny.gguf")
    arguments = ["convert", "-i", str(gguf), "-o", str(tmp_path / "out"), "-q", "--q-recipe", "auto", "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--target-bpw", "15", "--text", str(text)])
    assert done.exit_code == 0, done.output
    (model,) = measured
    ids = model.tokenizer.encode("def main():")
    assert mx.array_equal(model.forward([ids]), load_model(tiny, "float32").forward([ids]))
