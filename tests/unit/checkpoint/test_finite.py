"""Weights that are no numbers are found when a model is loaded, whichever they are: never an answer of "!!!!"."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_delta import load_model
from mlx_delta.checkpoint.finite import read_finite
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.cli.main import app
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import CheckpointError
from support import TINY

LAYER = "language_model.model.layers.1"
FLOATS = {mx.bfloat16: mx.uint16, mx.float16: mx.uint16, mx.float32: mx.uint32}


def read(*arrays: mx.array) -> None:
    def tensor(at: int, array: mx.array) -> Tensor:
        return Tensor(f"t{at}", f"stored{at}", array.shape, array.dtype, lambda: array)

    found = read_finite([tensor(at, array) for at, array in enumerate(arrays)], Path("here"))
    assert all(mx.array_equal(found[f"t{at}"], array) for at, array in enumerate(arrays))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_every_bit_pattern(dtype: mx.Dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(np.array(mx.array(bits).view(dtype).astype(mx.float32)))
    read(mx.array(bits[finite]).view(dtype))
    for pattern in bits[~finite][::37]:  # each that is none, alone among zeros
        with pytest.raises(CheckpointError):
            read(mx.array(np.array([0, pattern, 0], np.uint16)).view(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_places_and_values(dtype: mx.Dtype) -> None:
    """At the edges of the pieces that are looked at; the largest numbers, and what is no float, are right."""
    values = np.zeros((3, 300_001), np.float32)
    for value, place in ((np.nan, (0, 0)), (-np.nan, (1, 262_143)), (np.inf, (1, 262_144)), (-np.inf, (2, 300_000))):
        broken = values.copy()
        broken[place] = value
        shown = str(value).removeprefix("-" if np.isnan(value) else " ")
        with pytest.raises(CheckpointError, match=rf"^here: stored1: expected finite weights, found -?{shown} at \["):
            read(mx.zeros(3), mx.array(broken).astype(dtype))
    largest = float(mx.finfo(dtype).max)
    read(mx.array([largest, -largest], dtype), mx.zeros((0, 4), dtype), mx.full((2,), 0xFFFFFFFF, mx.uint32))


def test_how_many() -> None:
    with pytest.raises(CheckpointError, match=r"stored0: expected finite weights, found inf at \[1, 2\] and 3 more$"):
        read(mx.array([[0, 0, 0], [0, 0, mx.inf], [mx.nan, mx.nan, -mx.inf]]))


def damaged(whole: Path, out: Path, name: str, value: float) -> Path:
    """A copy with one value of one tensor replaced."""
    shutil.copytree(whole, out)
    arrays = mx.load(str(out / "model.safetensors"))
    shape, flat = arrays[name].shape, arrays[name].reshape(-1)
    arrays[name] = mx.where(mx.arange(flat.size) == 7 % flat.size, mx.array(value, flat.dtype), flat).reshape(shape)
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unquantized, and at 4 bits."""
    out = tmp_path_factory.mktemp("finite")
    convert(TINY, out / "bfloat16", quantize=False)
    convert(TINY, out / "4bit")
    return out


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("bfloat16", f"{LAYER}.mlp.up_proj.weight", mx.nan),
        ("bfloat16", "language_model.model.embed_tokens.weight", -mx.inf),
        ("4bit", f"{LAYER}.input_layernorm.weight", mx.nan),
        ("4bit", f"{LAYER}.linear_attn.A_log", mx.inf),
        ("4bit", f"{LAYER}.linear_attn.conv1d.weight", -mx.inf),
        ("4bit", f"{LAYER}.mlp.up_proj.scales", mx.nan),
        ("4bit", "language_model.lm_head.biases", mx.inf),
    ],
)
def test_loading(kind: str, name: str, value: float, checkpoints: Path, tmp_path: Path) -> None:
    path = damaged(checkpoints / kind, tmp_path / "damaged", name, value)
    with pytest.raises(CheckpointError, match=rf"damaged: {name}: expected finite weights, found {value} at \["):
        load_model(path)


def test_command_line(checkpoints: Path, tmp_path: Path) -> None:
    path = damaged(checkpoints / "4bit", tmp_path / "damaged", f"{LAYER}.mlp.up_proj.scales", mx.nan)
    done = CliRunner().invoke(app, ["generate", "-m", str(path), "-p", "def", "--max-new-tokens", "4"])
    assert done.exit_code == 1
    assert "up_proj.scales: expected finite weights, found nan" in done.output.replace("\n", " ")
