"""Whatever is wrong with the arguments of a conversion is told before a tensor is read or anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_delta.checkpoint import safetensors
from mlx_delta.cli.main import app
from mlx_delta.conversion.arguments import Arguments
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ArgumentError, ConvertError, ImatrixError, MlxDeltaError, OutputError, OutputExistsError
from support import TINY

SENSITIVITY = {"language_model.lm_head": {4: 0.1}}


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> Any:
        raise AssertionError(f"{file} was read")

    monkeypatch.setattr(safetensors, "_load_file", refuse)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "best"}, "recipe: expected unsloth or auto, found best"),
        ({"bits": 7}, "bits: expected one of 2, 3, 4, 5, 6, 8, found 7"),
        ({"group_size": 48}, "group_size: expected one of 32, 64, 128, found 48"),
        ({"quantize": False, "bits": 4}, "bits: expected it with quantize, found 4 and quantize=False"),
        ({"quantize": False, "awq_ratio": 0.5}, "awq_ratio: expected it with quantize"),
        ({"quantize": False, "calibrated": True}, "calibration: expected it with quantize"),
        ({"recipe": "unsloth"}, "imatrix: expected one for the recipe unsloth"),
        ({"recipe": "auto", "measured": True}, "target_bpw: expected bits a weight"),
        ({"recipe": "auto", "target_bpw": 4}, "sensitivity: expected the matrices', measured"),
        ({"recipe": "auto", "target_bpw": 4, "measured": True, "bits": 3}, "bits: expected target_bpw instead"),
        ({"recipe": "auto", "target_bpw": float("nan"), "measured": True}, "target_bpw: expected a positive number"),
        ({"target_bpw": 4}, "target_bpw: expected the recipe auto with it, found no recipe"),
        ({"measured": True}, "sensitivity: expected the recipe auto with it, found no recipe"),
        ({"calibrated": True, "fit": False}, "calibration: expected the fit with it"),
        ({"imatrix": Path("x"), "awq_ratio": 2.0}, "awq_ratio: expected a number from 0 to 1, found 2.0"),
        ({"imatrix": Path("x"), "awq_ratio": 0.5, "awq": False}, "awq_ratio: expected an imatrix with it, awq"),
    ],
)
def test_against_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Arguments(**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"recipe": "auto", "target_bpw": 1.5, "sensitivity": SENSITIVITY}, ArgumentError, r"expected at least 2\.\d+"),
        ({"recipe": "auto", "target_bpw": 16, "sensitivity": SENSITIVITY}, ArgumentError, "that needs quantization"),
        ({"imatrix": "absent.gguf"}, ImatrixError, "absent.gguf: expected an importance matrix, found no such file"),
        ({"imatrix": TINY / "config.json"}, ImatrixError, "expected an importance matrix"),
        ({"overrides": TINY / "config.json"}, ConvertError, "expected a pattern of a module"),
        ({"overrides": {"lm_head": 8}}, ArgumentError, "overrides: expected a path, found {'lm_head': 8}"),
    ],
)
def test_against_the_checkpoint(given: dict[str, Any], kind: type[MlxDeltaError], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        convert(TINY, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError, match="there: expected a new directory"):
        convert(TINY, tmp_path / "there", bits=4)
    (tmp_path / "there" / "letter.txt").write_text("x")
    with pytest.raises(OutputError, match="expected a model directory to replace"):
        convert(TINY, tmp_path / "there", bits=4, force=True)
    with pytest.raises(OutputError, match="apart from the input"):
        convert(TINY, TINY / "out", bits=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--text", "TEXT"], "--target-bpw: expected bits a weight"),
        (["--text", "TEXT", "--target-bpw", "1"], "--target-bpw: expected at least 2."),
        (["--text", "TEXT", "--target-bpw", "4", "-o", "THERE"], "expected a new directory, found it there already"),
        (["--text", "TEXT", "--target-bpw", "4", "--imatrix-path", "none"], "none: expected an importance matrix"),
        (["--text", "TEXT", "--target-bpw", "4", "--q-overrides", "TEXT"], "expected JSON"),
        (["--target-bpw", "4", "--sensitivity", "none.json"], "none.json: expected what was measured, or --text"),
        (["--calibrate", "TEXT", "--context", "1", "--target-bpw", "4"], "--context: expected at least 2 tokens"),
    ],
)
def test_the_command_line_measures_nothing_in_vain(given: list[str], message: str, tmp_path: Path) -> None:
    """The recipe auto runs the model for minutes, so what is wrong has to be told before."""
    (tmp_path / "text").write_text("Count to 7. " * 500)
    (tmp_path / "there").mkdir()
    names = {"TEXT": str(tmp_path / "text"), "THERE": str(tmp_path / "there")}
    arguments = ["convert", "-i", str(TINY), "-o", str(tmp_path / "out"), "-q", "--q-recipe", "auto"]
    done = CliRunner().invoke(app, [*arguments, *(names.get(each, each) for each in given)])
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ").replace("  ", " "), done.output


def test_a_dry_run_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    report = convert(TINY, tmp_path / "there", bits=4, dry_run=True)
    assert report.bytes_written == 0 < report.bytes_predicted
    assert json.dumps([row.component for row in report.components])
