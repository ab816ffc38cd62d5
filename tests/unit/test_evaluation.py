"""Evaluation against its own formulas, and the conversion judged by it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_delta.calibrate.layers import layer_calibration
from mlx_delta.cli.main import app
from mlx_delta.conversion.pipeline import convert
from mlx_delta.evaluation import Evaluation, evaluate
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from mlx_delta.plot import save_evaluations
from support import GOLDEN, TINY


@pytest.fixture(scope="module")
def reference(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture(scope="module")
def text(golden: Path) -> str:
    return (golden / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "plain"
    convert(tiny, out, recipe="unsloth", imatrix=tiny / "imatrix.gguf", awq=False, fit=False)
    return out


def test_a_model_is_itself(reference: LanguageModel, golden: Path, text: str) -> None:
    (found,) = evaluate([reference], reference, text, max_tokens=300, context=200)
    assert (found.kld_mean, found.kld_median, found.top1, found.tokens) == (0, 0, 1, 300)
    assert found.perplexity == found.reference_perplexity
    assert 2 < found.perplexity < 20  # it was trained on text like this


def test_figures_are_their_formulas(reference: LanguageModel, plain: Path, text: str) -> None:
    """In float64, over two windows of which the second is short."""
    model = load_model(plain, "float32")
    (found,) = evaluate([model], reference, text, max_tokens=150, context=100)
    ids = reference.tokenizer.encode(text)[:150]
    klds, same, losses = [], [], []
    for window in (ids[:100], ids[100:]):
        logs = []
        for each in (reference, model):
            logits = np.array(each.forward([window])[0].astype(mx.float32), np.float64)
            logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        p, q = logs
        klds += list((np.exp(p) * (p - q)).sum(-1))
        same += list(p.argmax(-1) == q.argmax(-1))
        losses += [-q[i, token] for i, token in enumerate(window[1:])]
    assert found.kld_mean == pytest.approx(np.mean(klds), rel=1e-4)
    assert found.kld_median == pytest.approx(np.median(klds), rel=1e-3)
    assert found.kld_p999 == pytest.approx(np.quantile(klds, 0.999), rel=1e-4)
    assert found.top1 == np.mean(same)
    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_our_fit_is_closer_than_mx_quantize(tiny: Path, reference: LanguageModel, plain: Path, text: str) -> None:
    """The same recipe and bits: four fifths of the divergence at most, on text that neither has seen."""
    out = plain.parent / "ours"
    convert(tiny, out, recipe="unsloth", imatrix=tiny / "imatrix.gguf")
    models = [load_model(path, "float32") for path in (plain, out)]
    theirs, ours = evaluate(models, reference, text, max_tokens=2048)
    assert ours.nbytes == theirs.nbytes
    assert ours.kld_mean < 0.8 * theirs.kld_mean
    assert ours.kld_median < 0.8 * theirs.kld_median


def test_error_feedback_is_closer_still(
    tiny: Path, golden: Path, reference: LanguageModel, plain: Path, text: str
) -> None:
    """The same recipe and bits again, calibrated on other text: a third of mx.quantize's divergence (12 k tokens of
    calibration), and less than llama.cpp's Q4_K_M has here, 0.0037 by `mlx-delta evaluate`."""
    calibration, out = layer_calibration(tiny, [golden / "calibration.txt"]), plain.parent / "calibrated"
    convert(tiny, out, recipe="unsloth", calibration=calibration)
    theirs, ours = evaluate([load_model(path, "float32") for path in (plain, out)], reference, text)
    assert ours.nbytes == theirs.nbytes
    assert ours.kld_mean < min(0.35 * theirs.kld_mean, 0.0037)
    assert ours.kld_median < 0.4 * theirs.kld_median


def test_command_line(tiny: Path, plain: Path, golden: Path, tmp_path: Path) -> None:
    arguments = [
        "evaluate",
        "-m",
        str(plain),
        "-m",
        str(tiny),
        "-r",
        str(tiny),
        "-t",
        str(golden / "heldout.txt"),
        "--max-tokens",
        "64",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "top-1" in shown.output
    first, second = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert first["kld_mean"] > 0 == second["kld_mean"]
    assert first["nbytes"] < second["nbytes"]
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    for wrong, message in (
        (["--max-tokens", "1"], "--max-tokens: expected at least 2, found 1"),
        (["--context", "1"], "--context: expected at least 2 tokens, found 1"),
        (["-t", str(tmp_path / "latin")], "latin: expected UTF-8, found"),
        (["-t", str(tmp_path / "absent")], "absent"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 1
        assert message in refused.output.replace("\n", "")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_narrow_terminals(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Every figure stands whole on its line, and no line is longer than the terminal."""
    names = ["tiny", "an-organisation/Qwen3.5-9B-unsloth-3bit@main"]
    results = [Evaluation(n, 18_012_345_678, 8192, 7.12, 7.01, 0.0123, 0.0023, 0.4567, 1.0) for n in names]
    monkeypatch.setattr("mlx_delta.evaluation.evaluate", lambda *_, **__: results)
    monkeypatch.setattr("mlx_delta.loading.load_model", lambda *_: None)
    arguments = ["evaluate", "-m", str(TINY), "-m", str(TINY), "-r", str(TINY), "-t", str(GOLDEN / "heldout.txt")]
    monkeypatch.chdir("/")
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0, shown.output
    for figure in ("18,012.3", "0.01230", "0.00230", "0.4567", "100.00%", "7.1200"):
        assert shown.stdout.count(figure) == 2
    assert max(len(line) for line in shown.stdout.splitlines()) <= columns


def test_the_highest_marker_is_inside_the_plot(tmp_path: Path) -> None:
    figures: list[Any] = []
    results = [Evaluation(n, 1000 * int(n), 10, 1, 1, 0.1 * int(n), 0.1, 0.1, 1) for n in ("0", "1", "9")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_delta.plot._save", lambda figure, file: figures.append(figure))
        save_evaluations(results, tmp_path / "x.png")
    axes = figures[0].axes[0]
    for result in results:
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((result.nbytes / 1e6, result.kld_mean)))
        assert 0.02 < x < 0.98
        assert 0 <= y < 0.95


def test_plot(tiny: Path, golden: Path, tmp_path: Path) -> None:
    png = tmp_path / "kld.png"
    arguments = ["evaluate", "-m", str(tiny), "-r", str(tiny), "-t", str(golden / "heldout.txt"), "--max-tokens", "16"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its divergence is 0, which no logarithmic axis has
        assert CliRunner().invoke(app, [*arguments, "--plot", str(png)]).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
