"""From messages to answers: placeholders, positions, features, logits and greedy tokens are Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import LanguageModel, load_model
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.vision.vision import Vision
from support.pictures import ARRAYS, EXPECTED, messages, seeing

CONVERSATIONS = EXPECTED["conversations"]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda entry: entry["name"])
def test_the_chain(conversation: dict[str, Any]) -> None:
    """Features to 1e-5: wrong rope moves them by .3, a transposed grid by .04, another GELU by .0015."""
    name, model = conversation["name"], seeing()
    prompt = model.prompt(messages(conversation), enable_thinking=conversation["enable_thinking"])
    assert prompt.ids == ARRAYS[f"{name}.ids"].tolist()
    assert np.array_equal(prompt.positions, np.array(ARRAYS[f"{name}.positions"]))
    assert prompt.rope_delta == conversation["rope_delta"]
    assert mx.abs(prompt.features[::8] - ARRAYS[f"{name}.features"]).max() <= 1e-5
    cache = model.make_cache()
    logits = model.forward(prompt, cache)
    assert mx.abs(logits[0, -1, ::8] - ARRAYS[f"{name}.logits"]).max() <= 1e-4
    tokens: list[int] = []
    expected = ARRAYS[f"{name}.greedy"].tolist()
    for _ in expected:
        tokens.append(int(mx.argmax(logits[0, -1])))
        logits = model.forward([tokens[-1:]], cache)
    assert tokens == expected


def test_a_picture_has_the_features_that_it_has_alone() -> None:
    """Bit for bit, whatever other pictures, of whatever size, are looked at in the same pass."""
    model = seeing()
    two = model.prompt(messages(CONVERSATIONS[1]))
    assert two.pictures is not None
    vision = _vision(model)
    tower = vision._load(vision.sight.config)
    patches = [medium.patches() for medium in two.pictures.media]
    assert mx.array_equal(mx.concatenate([tower([each]) for each in patches]), tower(patches))


def _vision(model: LanguageModel) -> Vision:
    assert model.vision is not None
    return model.vision


def test_bfloat16(tiny: Path) -> None:
    """Rounded where ops end: close to float32, and the same answer."""
    model, exact = load_model(tiny), seeing()
    talk = messages(CONVERSATIONS[0])
    prompt, reference = model.prompt(talk), exact.prompt(talk)
    assert prompt.features.dtype == mx.bfloat16
    assert 0 < mx.abs(prompt.features.astype(mx.float32) - reference.features).max() < 0.02
    asked: dict[str, Any] = {"enable_thinking": False, "temperature": 0}
    assert model.chat(talk, **asked).text == exact.chat(talk, **asked).text


def test_text_runs_whatever_is_said_of_the_tower(tiny: Path, tmp_path: Path) -> None:
    """And a picture is refused by what is wrong with it, by name."""
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tiny / "config.json").read_text())
    text: list[Any] = [{"role": "user", "content": "Count to 3."}]
    asked: dict[str, Any] = {"temperature": 0, "max_new_tokens": 2, "enable_thinking": False}
    for vision, message in (
        ({"num_heads": 3}, r"config.json: vision_config: num_heads: expected heads of 4 n values each"),
        ({"depth": 3}, r"tensors do not fit config.json:\s+vision_tower.blocks.2\S+: expected .*, found nothing"),
        ({"patch_size": 14}, r"preprocessor: expected patch_size, .* \(14, 2, 2\), .* found \(16, 2, 2\)"),
    ):
        file = tmp_path / "config.json"
        file.unlink()
        file.write_text(json.dumps({**config, "vision_config": {**config["vision_config"], **vision}}))
        model = load_model(tmp_path)
        assert model.chat(text, **asked).num_tokens == 2
        with pytest.raises((ConfigError, CheckpointError), match=message):
            model.chat(messages(CONVERSATIONS[0]), **asked)
