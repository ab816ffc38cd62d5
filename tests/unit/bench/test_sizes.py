"""The published sizes by their configs alone: parameters, tensors and bytes of the recipe."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta.bench.random_model import random_network, recipe_plans, write_model
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache


@pytest.mark.parametrize("size", CONFIGS)
def test_parameters_of_every_published_size(size: str) -> None:
    _, plans = recipe_plans(size)
    assert sum(math.prod(each.shape) for each in plans) == CONFIGS[size]["text_params"]


def test_the_9b_in_the_recipe() -> None:
    """767 text tensors; 5.29 GB read a token: all of it but the embedding, of which one row."""
    _, plans = recipe_plans("9B")
    assert sum(len(each.entries) for each in plans) == 767
    embedding = next(each.nbytes for each in plans if each.component == "embed_tokens")
    total = sum(each.nbytes for each in plans)
    assert total - embedding == pytest.approx(5.29e9, rel=1e-3)


def test_a_random_model_of_a_real_size_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 0.8B's widths in two layers and a small vocabulary: tied embeddings, ratio 1, hidden 1024."""
    small = {**CONFIGS["0.8B"]["text_config"], "num_hidden_layers": 4, "vocab_size": 4096}
    monkeypatch.setitem(CONFIGS, "0.8B", {"text_config": small})
    write_model("0.8B", tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert len(model.generate([1, 2, 3], max_new_tokens=8, temperature=0).text()) > 0


def test_a_random_model_with_experts_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 35B-A3B's widths in four layers of 16 experts and a small vocabulary."""
    small = {**CONFIGS["35B-A3B"]["text_config"], "num_hidden_layers": 4, "vocab_size": 4096, "num_experts": 16}
    monkeypatch.setitem(CONFIGS, "35B-A3B", {"model_type": "qwen3_5_moe", "text_config": small})
    network = random_network("35B-A3B", bits=4)
    layer = sum(stage.bytes_per_token for stage in network.layers[0].feed_forward.stages(1e-6))
    # In bits, with scales and biases: gate and up 4.5, down 5.5, the shared expert 8.5, the router 16.
    assert 8 * layer == 2048 * 512 * (8 * (2 * 4.5 + 5.5) + 3 * 8.5) + 2048 * 17 * 16
    assert mx.isfinite(network(mx.array([[1, 2, 3]]), Cache.empty(network.config))).all()
