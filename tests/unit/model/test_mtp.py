"""The MTP head against Hugging Face's float32 results (tests/golden/mtp.safetensors), and where it may lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_checkpoint, load_model
from mlx_delta.model.cache import KeyValues
from support import GOLDEN, TINY
from support.gguf_files import write_gguf

_CHAIN = 4  # drafts in a row


@pytest.fixture(scope="module")
def golden() -> dict[str, mx.array]:
    found = mx.load(str(GOLDEN / "mtp.safetensors"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(TINY, "float32")


def test_draft_logits_are_those_of_the_reference(model: LanguageModel, golden: dict[str, mx.array]) -> None:
    for prompt in (0, 13):
        ids = mx.concatenate([golden[f"{prompt}.ids"], golden[f"{prompt}.greedy"]])[None]
        slot, expected = golden[f"{prompt}.slot"].item(), golden[f"{prompt}.logits"]
        found = model.mtp_logits(ids)
        assert found.shape == (1, ids.shape[1] - 1, model.config.text.vocab_size)
        assert mx.abs(found[0, slot] - expected[0]).max() < 1e-4


def drafts(model: LanguageModel, ids: list[int], first: int) -> list[list[int]]:
    """Greedy chains of drafts from each slot on, from ``first``."""
    network, tokens = model.network, mx.array([ids])
    assert network.mtp is not None
    *_, x = network.hidden_states(tokens, model.make_cache())
    state = KeyValues()
    y = network.draft(tokens[:, 1:], network.hidden(x)[:, :-1], state, 0)
    other = KeyValues()
    last = network.draft(tokens[:, 1:], network.hidden(x)[:, :-1], other, 0, last=True)
    assert last.shape[1] == 1
    assert mx.abs(last - y[:, -1:]).max() < 1e-4
    assert all(mx.array_equal(a, b) for a, b in zip(other.arrays(), state.arrays(), strict=True))
    chains = []
    for slot in range(first, len(ids) - 1):
        x, own, chain = y[:, slot : slot + 1], KeyValues(state.keys, state.values), list[mx.array]()
        for position in range(slot + 1, slot + 1 + _CHAIN):
            chain.append(mx.argmax(network.draft_logits(x), axis=-1))
            x = network.draft(chain[-1], network.mtp.hidden(x), own, position)
        chains.append([each.item() for each in chain])
    return chains


def test_chains_of_drafts_are_those_of_the_reference(model: LanguageModel, golden: dict[str, mx.array]) -> None:
    """So as many are accepted: a draft is if it is the model's own token."""
    for prompt in (3, 9):
        ids, greedy = golden[f"{prompt}.ids"].tolist(), golden[f"{prompt}.greedy"].tolist()
        found = drafts(model, ids + greedy, len(ids) - 1)
        assert found[:63] == golden[f"{prompt}.drafts"].tolist()[:63]


def test_a_head_in_any_place_is_the_head(model: LanguageModel, tmp_path: Path) -> None:
    """In the model's own files, in a converted directory, in a GGUF file, and beside a model that has none."""
    ids = [list(range(40, 70))]
    expected = model.mtp_logits(ids)
    path = write_gguf(tmp_path / "tiny.gguf")
    assert mx.array_equal(load_checkpoint(open_checkpoint(path), "float32").mtp_logits(ids), expected)

    converted = convert(TINY, tmp_path / "converted", quantize=False).path
    rounded = load_model(converted, "float32").mtp_logits(ids)  # norms, 1 + w, are rounded to bfloat16
    assert mx.abs(rounded - expected).max() < 0.1

    head = {n: t.load() for n, t in open_checkpoint(converted).tensors.items() if n.startswith("mtp.")}
    bare = convert(TINY, tmp_path / "bare", quantize=False, keep_mtp=False).path
    with pytest.raises(ArgumentError, match="mtp_logits: expected a checkpoint with an MTP head, found none in"):
        load_model(bare).mtp_logits(ids)
    shutil.copy(converted / "config.json", bare)  # which says that there is a head, as most do
    assert load_model(bare).network.mtp is None
    (bare / "mtp").mkdir()
    for prefix in ("mtp.", ""):
        named = {prefix + name.removeprefix("mtp."): array for name, array in head.items()}
        mx.save_safetensors(str(bare / "mtp" / "weights.safetensors"), named)
        assert mx.array_equal(load_model(bare, "float32").mtp_logits(ids), rounded)


def test_a_quantized_head_costs_no_bytes_of_a_token(tmp_path: Path) -> None:
    kept, dropped = (
        load_model(convert(TINY, tmp_path / str(keep), bits=4, keep_mtp=keep).path) for keep in (None, False)
    )
    assert kept.network.mtp is not None
    assert dropped.network.mtp is None
    assert kept.network.mtp.fc.bits == 4
    assert kept.network.bytes_per_token == dropped.network.bytes_per_token
    assert kept.network.mtp.bytes_per_draft > 0
    assert "mtp_num_hidden_layers" in json.dumps(kept.config.raw)
    ids = [list(range(40, 70))]
    assert mx.array_equal(kept.forward(ids), dropped.forward(ids))
    assert kept.mtp_logits(ids).shape == (1, 29, 4096)
