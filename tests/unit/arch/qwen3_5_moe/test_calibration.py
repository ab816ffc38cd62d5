"""What conversion learns of a model with experts by running it: calibration of each expert, widths by sensitivity."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.bench.cases import relative_rms
from mlx_delta.calibrate.chunks import read_chunks
from mlx_delta.calibrate.layers import LayerCalibration, layer_calibration
from mlx_delta.calibrate.sensitivity import measure_sensitivity
from mlx_delta.conversion.pipeline import convert
from mlx_delta.loading import load_model
from mlx_delta.summary import summarize
from support import GOLDEN
from support.experts import EXPERTS, LAYERS

TEXT = GOLDEN / "heldout.txt"


@pytest.fixture(scope="module")
def calibration(experts: Path) -> LayerCalibration:
    return layer_calibration(experts, [TEXT], context=96, max_chunks=8)


def test_each_expert_is_rounded_by_its_own_tokens(experts: Path, calibration: LayerCalibration, tmp_path: Path) -> None:
    """Closer to the model on the text than by the fit alone; experts of few tokens are told."""
    convert(experts, tmp_path / "calibrated", bits=3, calibration=calibration)
    convert(experts, tmp_path / "plain", bits=3)
    model = load_model(experts, "float32")
    tokens = mx.array(read_chunks([TEXT], model.tokenizer, 96, 8))
    expected = model.forward(tokens)
    errors = [
        relative_rms(load_model(tmp_path / name, "float32").forward(tokens), expected)
        for name in ("calibrated", "plain")
    ]
    assert errors[0] < 0.8 * errors[1]
    few, total = calibration._few
    assert 0 < few < total == LAYERS * EXPERTS
    assert f"calibration: {few} of {total} experts were chosen by fewer tokens" in calibration.notes[0]


def test_widths_by_sensitivity(experts: Path, tmp_path: Path) -> None:
    """Experts count as three matrices of a layer; the router is left as it is."""
    model = load_model(experts, "float32")
    found = measure_sensitivity(model, read_chunks([TEXT], model.tokenizer, 64, 1), {})
    experts_of_layers = [name for name in found if ".switch_mlp." in name]
    assert len(experts_of_layers) == 3 * LAYERS
    assert not [name for name in found if name.endswith(("mlp.gate", "shared_expert_gate"))]
    assert all(np.diff([klds[bits] for bits in sorted(klds)]).max() <= 0 for klds in found.values())
    report = convert(experts, tmp_path / "auto", recipe="auto", target_bpw=5.0, sensitivity=found)
    assert 4.5 < report.bits_per_weight <= 5.0
    widths = {group.component: group.width for group in summarize(tmp_path / "auto").groups}
    assert widths["router"] == "bfloat16"
    assert load_model(tmp_path / "auto").generate("import", max_new_tokens=4).text()
