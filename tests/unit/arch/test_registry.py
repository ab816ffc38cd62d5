"""An architecture is one value: here a toy with names, keys and a feed-forward of its own, added in this one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta import ops
from mlx_delta.arch import registry
from mlx_delta.arch.base import Components, Fold, Recipes
from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.calibrate.layers import layer_calibration
from mlx_delta.checkpoint.source import Source
from mlx_delta.checkpoint.tensors import Shapes, Tensor
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ConfigError
from mlx_delta.loading import load_model
from mlx_delta.model.layers import Layer, Stage, hybrid_layer, normed
from mlx_delta.model.network import LAYERS, Network
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix
from support import TINY


@dataclass(frozen=True)
class Squared:
    """x + out(relu(in(h))^2), h = RMSNorm(x)."""

    norm: mx.array
    inward: Matrix
    out: Matrix

    @classmethod
    def from_weights(cls, w: Weights) -> Squared:
        norm = w.parameter("post_attention_layernorm.weight")
        return cls(norm, w.matrix("squared.in_proj"), w.matrix("squared.out_proj"))

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        return ops.qmm(self._activations(x, eps), (self.out,), residual=x)

    def _activations(self, x: mx.array, eps: float) -> mx.array:
        return mx.square(mx.maximum(ops.qmm(x, (self.inward,), norm=self.norm, eps=eps), 0))

    def stages(self, eps: float) -> list[Stage]:
        return [
            Stage({"squared.in_proj": self.inward}, lambda x: normed(x, self.norm, eps)),
            Stage({"squared.out_proj": self.out}, lambda x: self._activations(x.astype(mx.float32), eps), adds=True),
        ]


def toy_config(raw: Mapping[str, Any], origin: str) -> TextConfig:
    return QWEN3_5.text_config({"text_config": raw["dimensions"]}, origin)


def toy_shapes(config: ModelConfig) -> Shapes:
    text, shapes = config.text, {}
    for name, shape in QWEN3_5.text_shapes(config).items():
        if ".mlp." not in name:
            shapes[name] = shape
        elif name.endswith("gate_proj.weight"):
            shapes[name.replace("mlp.gate", "squared.in")] = (text.intermediate_size, text.hidden_size)
            shapes[name.replace("mlp.gate", "squared.out")] = (text.hidden_size, text.intermediate_size)
    return shapes


def toy_name(name: str) -> str | None:
    return f"language_model.{name.removeprefix('toy/')}" if name.startswith("toy/") else name


def toy_tensors(source: Source, config: ModelConfig, shapes: Shapes) -> dict[str, Tensor]:
    def tensor(stored: str) -> Tensor:
        info = source.tensors[stored]
        return Tensor(str(toy_name(stored)), stored, info.shape, info.dtype, lambda: source.load(stored))

    return {each.name: each for each in map(tensor, source.tensors)}


def toy_layer(layers: Weights, index: int) -> Layer:
    return hybrid_layer(layers, index, Squared.from_weights)


TOY = replace(
    QWEN3_5,
    model_types=("toy",),
    text_config=toy_config,
    text_shapes=toy_shapes,
    mtp_shapes=lambda config: {},
    canonical_name=toy_name,
    canonical_tensors=toy_tensors,
    network=lambda config, weights, dtype: Network.from_weights(config, weights, dtype, toy_layer),
    layer=lambda config, weights, index: toy_layer(Weights(config, weights).under(LAYERS), index),
    components=Components(
        {**QWEN3_5.components.rows, "in": ("squared.in_proj",), "out": ("squared.out_proj",)},
    ),
    recipes=Recipes(
        linear=(*QWEN3_5.recipes.linear,),
        unsloth=(("*.squared.in_proj", 0), ("*.squared.out_proj", 1), ("*.embed_tokens", 2)),
        kept=QWEN3_5.recipes.kept,
        fixed=QWEN3_5.recipes.fixed,
    ),
    folds=(Fold("post_attention_layernorm", ("squared.in_proj",)),),
    gguf=None,
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of it, out of the tiny one's tensors."""
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    registry.register(TOY)
    out = tmp_path / "toy"
    out.mkdir()
    arrays = {}
    for name, tensor in open_checkpoint(TINY).text_tensors().items():
        stored = f"toy/{name.removeprefix('language_model.')}"
        if ".mlp.gate_proj" not in name:
            stored = stored.replace("mlp.up", "squared.in").replace("mlp.down", "squared.out")
            arrays[stored] = tensor.load()
    mx.save_safetensors(str(out / "model.safetensors"), arrays)
    dimensions = json.loads((TINY / "config.json").read_text())["text_config"]
    (out / "config.json").write_text(json.dumps({"model_type": "toy", "dimensions": dimensions}))
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, out)
    return out


def test_it_loads_and_generates(toy: Path) -> None:
    model = load_model(toy, "float32")
    run = model.generate("import os", max_new_tokens=8, temperature=0)
    assert run.text()
    # Token by token as all at once, and by the definition of its feed-forward.
    ids = [*run.prompt_ids, *run.token_ids[:-1]]
    assert model.forward([ids])[0, -1].argmax().item() == run.token_ids[-1]
    layer, x = model.network.layers[0], mx.random.normal((1, 5, 256))
    assert isinstance(layer.feed_forward, Squared)
    inward, out = layer.feed_forward.inward.weight, layer.feed_forward.out.weight
    h = mx.fast.rms_norm(x, layer.feed_forward.norm, 1e-6)
    expected = x + mx.square(mx.maximum(h @ inward.astype(mx.float32).T, 0)) @ out.astype(mx.float32).T
    assert mx.allclose(layer.feed_forward(x, 1e-6), expected, rtol=1e-4, atol=1e-4)


def test_it_is_converted_and_calibrated(toy: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Count to 7. " * 100)
    calibration = layer_calibration(toy, [text], context=32, max_chunks=2)
    report = convert(toy, tmp_path / "out", recipe="unsloth", bits=4, calibration=calibration)
    assert {(row.component, row.bits) for row in report.components} >= {
        ("in", "4"),
        ("out", "5"),
        ("embed_tokens", "6"),
    }
    model = load_model(tmp_path / "out")
    assert {name.rpartition(".")[2] for name, _ in model.network.matrices()} >= {"in_proj", "out_proj", "lm_head"}
    assert model.generate("import os", max_new_tokens=4, temperature=0).text()


def test_others_are_refused_by_the_names_of_those_known(toy: Path) -> None:
    (toy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"model_type: expected one of qwen3_5, .*, toy, found 'llama'"):
        load_model(toy)
