"""The recipe ``auto``: the choice against every other choice, what is measured, and the size it keeps."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.calibrate import sensitivity
from mlx_delta.calibrate.chunks import read_chunks
from mlx_delta.calibrate.sensitivity import measure_sensitivity
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.cli.main import app
from mlx_delta.config import Quantization
from mlx_delta.conversion.auto import auto, read_sensitivity
from mlx_delta.conversion.imatrix import read_imatrix
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ArgumentError, CheckpointError, ConvertError
from mlx_delta.evaluation import evaluate
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from mlx_delta.ops import Matrix
from support import TINY

A, B, C = (f"language_model.model.layers.{i}.mlp.up_proj" for i in range(3))
KLDS = {
    A: {3: 0.9, 4: 0.2, 6: 0.01},
    B: {3: 0.1, 4: 0.03, 6: 0.002},
    C: {3: 0.02, 4: 0.03, 6: 0.001},  # 4 bits are worth nothing here
}


def matrices() -> list[Tensor]:
    return [Tensor(f"{m}.weight", m, (64, 128), mx.bfloat16, lambda: mx.zeros((64, 128))) for m in KLDS]


def test_the_widths_are_the_best_of_their_size() -> None:
    """Against all 4^3 choices, at the sizes where the greedy path stands; and never above the budget."""

    def size(width: Quantization | None) -> float:
        return 16 if width is None else width.bits + 0.5

    for target in (3.5, 3.9, 4.5, 5.5, 6.5, 9.7):
        chosen = auto(matrices(), KLDS, target, 64, QWEN3_5)
        widths = [chosen.width(m) for m in KLDS]
        spent = sum(map(size, widths))
        assert spent <= 3 * target + 1e-9
        kld = sum(KLDS[m][w.bits] if w else 0 for m, w in zip(KLDS, widths, strict=True))
        options = [*((bits + 0.5, bits) for bits in (3, 4, 6)), (16.0, None)]
        for other in itertools.product(options, repeat=3):
            if sum(nbytes for nbytes, _ in other) <= spent:
                cost = sum(KLDS[m][bits] if bits else 0 for m, (_, bits) in zip(KLDS, other, strict=True))
                assert cost >= kld - 1e-12, (target, other)
    assert auto(matrices(), KLDS, 4.5, 64, QWEN3_5).width(C) == Quantization(3, 64)


def test_sizes_out_of_reach() -> None:
    with pytest.raises(ArgumentError, match=r"target_bpw: expected at least 3\.5, found 3\.4"):
        auto(matrices(), KLDS, 3.4, 64, QWEN3_5)
    with pytest.raises(ArgumentError, match="target_bpw: expected a size that needs quantization, found 16"):
        auto(matrices(), KLDS, 16, 64, QWEN3_5)
    with pytest.raises(ArgumentError, match=r"sensitivity: expected matrices of this model, found x\.y"):
        auto(matrices(), {**KLDS, "x.y": {3: 0.1}}, 4, 64, QWEN3_5)


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture(scope="module")
def measured(model: LanguageModel, tiny: Path, golden: Path) -> dict[str, dict[int, float]]:
    chunks = read_chunks([golden / "heldout.txt"], model.tokenizer, context=256, max_chunks=1)
    return measure_sensitivity(model, chunks, read_imatrix(tiny / "imatrix.gguf", model.config))


def test_sensitivity_is_what_evaluation_finds(
    model: LanguageModel, measured: dict[str, dict[int, float]], tiny: Path, golden: Path, tmp_path: Path
) -> None:
    """One matrix at 3 bits, of the embedding, a layer or lm_head: converted, loaded and evaluated on the same text."""
    assert len(measured) == 64 - 2 * 6  # all but in_proj_a and in_proj_b
    text = (golden / "heldout.txt").read_text(encoding="utf-8")
    for module in (
        "language_model.model.embed_tokens",
        "language_model.model.layers.5.linear_attn.out_proj",
        "language_model.lm_head",
    ):
        overrides, out = tmp_path / "widths.json", tmp_path / module
        overrides.write_text(json.dumps({module: 3, "*": None}))
        convert(
            tiny, out, imatrix=None if "layers" not in module else tiny / "imatrix.gguf", awq=False, overrides=overrides
        )
        (found,) = evaluate([load_model(out, "float32")], model, text, context=256, max_tokens=256)
        assert measured[module][3] == pytest.approx(found.kld_mean, rel=0.02), module
        assert measured[module][2] > measured[module][3] > measured[module][4] > measured[module][8] >= 0


def test_an_interrupted_measurement_goes_on(
    model: LanguageModel, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same numbers; what another text, group size or importance left is not taken."""
    up = "language_model.model.layers.0.mlp.up_proj"
    state, importance = tmp_path / "new" / "state", {up: np.ones(256, np.float32)}
    chunks = read_chunks([golden / "heldout.txt"], model.tokenizer, context=32, max_chunks=2)
    measured: list[object] = []
    fitted = sensitivity.fit
    monkeypatch.setattr(sensitivity, "fit", lambda *arguments: measured.append(1) or fitted(*arguments))

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, chunks[:1], importance, state=state, progress=stop)
    assert len(measured) == 3
    whole = measure_sensitivity(model, chunks[:1], importance)
    measured.clear()
    assert measure_sensitivity(model, chunks[:1], importance, state=state) == whole
    assert len(measured) == len(whole) - 3
    for other in (
        (chunks[1:], importance),
        (chunks[:1], importance, 32),
        (chunks[:1], {up: np.full(256, 2, np.float32)}),
    ):
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            measure_sensitivity(model, *other, state=state, progress=stop)  # type: ignore[arg-type]
        assert len(measured) == 3


def test_predictions_that_are_no_numbers(model: LanguageModel, golden: Path) -> None:
    """KLD of NaN is not 0."""
    chunks = read_chunks([golden / "heldout.txt"], model.tokenizer, context=32, max_chunks=1)
    broken = replace(model.network, norm=model.network.norm * mx.nan)
    with pytest.raises(CheckpointError, match="embed_tokens: expected finite predictions, found NaN or infinity"):
        measure_sensitivity(LanguageModel(model.path, model.config, broken, model.tokenizer), chunks, {})


def test_auto_beats_the_recipe_of_its_size(
    model: LanguageModel, measured: dict[str, dict[int, float]], tiny: Path, golden: Path, tmp_path: Path
) -> None:
    """On text that nothing was measured on: at least four times closer than ``unsloth``, in no more bytes."""
    imatrix = tiny / "imatrix.gguf"
    recipe = convert(tiny, tmp_path / "unsloth", recipe="unsloth", imatrix=imatrix)
    size = recipe.bits_per_weight
    found = convert(tiny, tmp_path / "auto", recipe="auto", target_bpw=size, sensitivity=measured, imatrix=imatrix)
    assert 0.98 * size < found.bits_per_weight <= size
    ids = model.tokenizer.encode((golden / "heldout.txt").read_text(encoding="utf-8"))
    unseen = model.tokenizer.decode(ids[1024:2048])
    models = [load_model(report.path, "float32") for report in (recipe, found)]
    theirs, ours = evaluate(models, model, unseen)
    assert ours.nbytes <= theirs.nbytes
    assert ours.kld_mean < theirs.kld_mean / 4


def test_command_line(tiny: Path, golden: Path, tmp_path: Path) -> None:
    measured = tmp_path / "sensitivity.json"
    arguments = ["convert", "-i", str(tiny), "-o", str(tmp_path / "out"), "-q", "--q-recipe", "auto", "--dry-run"]
    measured.write_text(json.dumps({"language_model.lm_head": {"4": 0.1, "8": 0.01}}))
    stored = ["--sensitivity", str(measured)]
    done = CliRunner().invoke(app, [*arguments, "--target-bpw", "15", *stored])
    assert done.exit_code == 0, done.output
    assert "lm_head" in done.output
    for wrong, message in (
        ([], "--target-bpw: expected bits a weight of the text model for the recipe auto"),
        (["--target-bpw", "4"], "--sensitivity: expected the matrices', measured, for the recipe auto"),
        (["--target-bpw", "4", "--q-bits", "3", *stored], "--q-bits: expected --target-bpw instead"),
        (["--q-recipe", "unsloth", *stored], "--sensitivity: expected the recipe auto with it, found unsloth"),
        (
            ["--target-bpw", "4", "--q-recipe", "unsloth"],
            "--target-bpw: expected the recipe auto with it, found unsloth",
        ),
    ):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 1, wrong
        assert message in refused.output.replace("\n", ""), refused.output
        assert "This is a bug" not in refused.output
    for content, message in (
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, found an array"),
        ('{"a": {"7": 1}}', "a: expected finite"),
    ):
        measured.write_text(content)
        with pytest.raises(ConvertError, match=message):
            read_sensitivity(measured)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_measuring(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says what keeps its work, goes on from it, and leaves nothing of it behind."""
    calls: list[int] = []

    def quantized(matrix: Matrix, *_: object) -> Matrix:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return matrix

    monkeypatch.setattr(sensitivity, "_quantized", quantized)  # what is measured is of no interest here
    monkeypatch.setattr(sensitivity, "_last_state", lambda *arguments: arguments[-1][-1])
    monkeypatch.setattr(sensitivity, "weighted_error", lambda *_: 1.0)
    monkeypatch.setattr(sensitivity, "_POSITIONS", 4)
    monkeypatch.setattr(sensitivity, "CHUNKS", 1)
    command = ["convert", "-i", str(TINY), "-o", str(tmp_path / "out"), "-q", "--q-recipe", "auto"]
    command += ["--target-bpw", "5", "--text", str(golden / "heldout.txt")]
    for file in ([], ["--sensitivity", str(tmp_path / "s.json")]):
        calls.clear()
        stopped = CliRunner().invoke(app, command + file)
        assert stopped.exit_code == 130, stopped.output
        state = f"{file[1] if file else tmp_path / 'out'}.progress"
        assert f"{state} keeps what is done" in stopped.output.replace("\n", "")
        assert [str(left) for left in tmp_path.iterdir()] == [state]
        done = CliRunner().invoke(app, [*command, *file, "--dry-run"])
        assert done.exit_code == 0, done.output
        left = [Path(file[1]).name] if file else []
        assert [each.name for each in tmp_path.iterdir()] == left
