"""The network against Hugging Face's float32 results (tests/golden/model.safetensors), and against itself in pieces."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.bench.cases import relative_rms
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from support import TINY

PROMPTS = range(11)
FLOAT32_BOUND = 1e-4


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, dtype="float32")


@cache
def loaded(device: str) -> LanguageModel:
    return load_model(TINY, dtype="float32")


@pytest.fixture
def model_on(device: mx.Device) -> LanguageModel:
    """On each device of this machine in turn, which is MLX's default for the test."""
    return loaded(device.type.name)


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, mx.array]:
    return mx.load(str(golden / "model.safetensors"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_those_of_hugging_face(model_on: LanguageModel, reference: dict[str, mx.array], prompt: int) -> None:
    expected = reference[f"{prompt}.logits"]
    found = model_on.forward(reference[f"{prompt}.ids"][None])
    assert relative_rms(found[0, -expected.shape[0] :], expected) <= FLOAT32_BOUND


@pytest.mark.parametrize("prompt", [0, 7])
def test_hidden_states_of_every_layer(model: LanguageModel, reference: dict[str, mx.array], prompt: int) -> None:
    network = model.network
    *found, last = network.hidden_states(reference[f"{prompt}.ids"][None], model.make_cache())
    found.append(mx.fast.rms_norm(last, network.norm, network.config.rms_norm_eps))
    expected = reference[f"{prompt}.hidden"]
    assert len(found) == expected.shape[0] == network.config.num_layers + 1
    for layer, hidden in enumerate(found):
        assert relative_rms(hidden[0], expected[layer]) <= FLOAT32_BOUND, f"layer {layer}"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_continuations(model_on: LanguageModel, reference: dict[str, mx.array], prompt: int) -> None:
    """Token for token up to the first place where Hugging Face's own top two are within 1e-2 of each other."""
    expected, margins = reference[f"{prompt}.greedy"].tolist(), reference[f"{prompt}.margin"].tolist()
    sure = next((i for i, margin in enumerate(margins) if margin <= 1e-2), len(margins))
    cache = model_on.make_cache()
    logits = prefill(model_on.network, reference[f"{prompt}.ids"][None], cache)
    for step in range(sure):
        token = mx.argmax(logits, axis=-1)
        assert token.item() == expected[step], f"step {step}"
        logits = model_on.forward(token[:, None], cache)[:, 0]
    assert sure >= 1


def test_perplexity(model: LanguageModel, reference: dict[str, mx.array]) -> None:
    """exp of the mean negative log-likelihood of 16 rows of 512 tokens, within 0.1 %; each row's mean within 1e-3."""
    ids, expected = reference["ppl.ids"], np.array(reference["ppl.nll"])
    found = []
    for row in range(ids.shape[0]):
        logits = model.forward(ids[row : row + 1, :-1])[0]
        picked = mx.take_along_axis(logits, ids[row, 1:, None], axis=-1)[:, 0]
        found.append((mx.logsumexp(logits, axis=-1) - picked).mean().item())
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert math.isclose(math.exp(np.mean(found)), math.exp(expected.mean()), rel_tol=1e-3)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 17, 64, 100])
def test_chunks_and_single_tokens_give_the_logits_of_one_call(
    model: LanguageModel, reference: dict[str, mx.array], chunk: int
) -> None:
    ids = reference["4.ids"][None, :150]
    whole = model.forward(ids)
    cache = model.make_cache()
    parts = [model.forward(ids[:, i : i + chunk], cache) for i in range(0, ids.shape[1], chunk)]
    assert cache.offset == ids.shape[1]
    assert relative_rms(mx.concatenate(parts, axis=1), whole) <= FLOAT32_BOUND


def test_prefill_in_chunks_gives_the_last_logits(model: LanguageModel, reference: dict[str, mx.array]) -> None:
    ids = reference["5.ids"][None]
    whole = model.forward(ids)[:, -1]
    for chunk in (50, 272, 273, 512):
        assert relative_rms(prefill(model.network, ids, model.make_cache(), chunk=chunk), whole) <= FLOAT32_BOUND


def test_a_left_padded_batch_gives_each_sequence_its_own_logits(
    model: LanguageModel, reference: dict[str, mx.array]
) -> None:
    rows = [reference[f"{n}.ids"].tolist() for n in (0, 7, 9)]
    longest = max(map(len, rows))
    ids = mx.array([[0] * (longest - len(row)) + row for row in rows])
    mask = mx.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    cache = model.make_cache()
    first = model.forward(ids, cache, mask=mask)
    tokens = mx.argmax(first[:, -1], axis=-1)[:, None]
    second = model.forward(tokens, cache)
    for i, row in enumerate(rows):
        alone = model.make_cache()
        expected = model.forward([row], alone)
        assert relative_rms(first[i, longest - len(row) :], expected[0]) <= FLOAT32_BOUND
        assert relative_rms(second[i], model.forward(tokens[i : i + 1], alone)[0]) <= FLOAT32_BOUND


def test_a_copied_cache_is_a_snapshot(model: LanguageModel, reference: dict[str, mx.array]) -> None:
    ids = reference["8.ids"][None]
    cache = model.make_cache()
    mx.eval(model.forward(ids[:, :20], cache))
    snapshot = cache.copy()
    first = model.forward(ids[:, 20:], cache)
    mx.eval(first)
    again = model.forward(ids[:, 20:], snapshot)
    assert mx.array_equal(first, again)


def test_decoding_does_not_copy_the_cache(model: LanguageModel, reference: dict[str, mx.array]) -> None:
    """After a first step, further tokens update the states and append to the KV cache in place."""
    cache = model.make_cache()
    mx.eval(model.forward(reference["0.ids"][None], cache))
    token = mx.array([[5]])
    mx.eval(model.forward(token, cache))
    before = [layer.arrays() for layer in cache.layers]
    sizes = sum(a.nbytes for arrays in before for a in arrays)
    del before
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    for _ in range(4):
        mx.eval(model.forward(token, cache), cache.arrays())
    assert mx.get_peak_memory() - start < sizes // 2


def test_a_decode_step_is_a_few_fused_primitives(model: LanguageModel) -> None:
    """5 a gated-delta layer, 6 an attention layer, and 5 around them that compute (views do not): the graph counted."""
    cache = model.make_cache()
    mx.eval(model.forward([[1, 2]], cache))
    sampler = Sampler(SamplingParams(), model.config.text.vocab_size)
    step = sampler.sample(model.network(mx.array([[3]], dtype=mx.int32), cache)[:, 0])
    dot = io.StringIO()
    mx.export_to_dot(dot, step)
    found = Counter(re.findall(r'label ?= ?"([^"]+)", shape=rectangle', dot.getvalue()))
    views = {"Squeeze", "ExpandDims"}
    assert found["qmm"] == 4 * 8 + 1
    assert (found["delta_mixer"], found["attention_prepare"], found["attention"]) == (6, 2, 2)
    assert sum(n for name, n in found.items() if name not in views) <= 6 * 5 + 2 * 6 + 5, found


def test_forward_in_bfloat16_is_close(tiny: Path, reference: dict[str, mx.array]) -> None:
    model = load_model(tiny)
    assert model.network.dtype == mx.bfloat16
    logits = model.forward(reference["3.ids"][None])
    assert logits.dtype == mx.bfloat16
    assert relative_rms(logits[0, -48:], reference["3.logits"]) <= 2e-2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[4096]], r"tokens: expected ids from 0 to 4095, found 4096"),
        ([[3, -1]], r"tokens: expected ids from 0 to 4095, found -1"),
        ([1, 2], r"tokens: expected non-empty integers \[B, T\], found .*int32 \[2\]"),
        (mx.zeros((1, 2)), r"tokens: expected non-empty integers \[B, T\], found .*float32 \[1, 2\]"),
    ],
)
def test_wrong_tokens(model: LanguageModel, tokens: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.forward(tokens)


def test_wrong_mask(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"mask: expected shape \[1, 2\], found \[1, 3\]"):
        model.forward([[1, 2]], mask=mx.ones((1, 3), dtype=mx.bool_))
