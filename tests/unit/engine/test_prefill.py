"""A prompt in several passes: where it may be cut without a bit of difference."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta import load_model
from mlx_delta.engine.cuts import ALIGNED, CHUNK
from mlx_delta.engine.prefill import prefill
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from support import GOLDEN


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny)


@pytest.fixture(scope="module")
def ids(model: LanguageModel) -> list[int]:
    return model.tokenizer.encode((GOLDEN / "heldout.txt").read_text(encoding="utf-8"))[:1100]


def run(model: LanguageModel, ids: list[int], *cuts: int) -> tuple[mx.array, Cache]:
    """Logits after ``ids``, which come in pieces, and the cache."""
    cache, start, logits = model.make_cache(), 0, mx.array(0)
    for end in (*cuts, len(ids)):
        logits = prefill(model.network, mx.array([ids[start:end]]), cache)
        mx.eval(logits)
        start = end
    return logits, cache


def same(a: tuple[mx.array, Cache], b: tuple[mx.array, Cache], tokens: int) -> bool:
    """Logits, states, and the keys and values of so many tokens."""
    assert a[1].offset == b[1].offset == tokens
    for layer, other in zip(a[1].layers, b[1].layers, strict=True):
        for x, y in zip(layer.arrays(), other.arrays(), strict=True):
            rows = hasattr(layer, "keys")
            x, y = (x[:, :, :tokens], y[:, :, :tokens]) if rows else (x, y)
            if not mx.array_equal(x, y).item():
                return False
    return bool(mx.array_equal(a[0], b[0]).item())


@pytest.mark.parametrize("tokens", [CHUNK + 1, CHUNK + 17, 700])
def test_a_cut_at_a_multiple_changes_no_bit(model: LanguageModel, ids: list[int], tokens: int) -> None:
    whole = run(model, ids[:tokens])
    for cut in (ALIGNED, 3 * ALIGNED, CHUNK - ALIGNED, CHUNK):
        assert same(run(model, ids[:tokens], cut), whole, tokens), cut
    assert same(run(model, ids[:tokens], ALIGNED, 2 * ALIGNED, CHUNK - ALIGNED), whole, tokens)
    for chunk in (ALIGNED, 3 * ALIGNED, 2 * CHUNK):
        cache = model.make_cache()
        assert same((prefill(model.network, mx.array([ids[:tokens]]), cache, chunk=chunk), cache), whole, tokens), chunk


def test_another_cut_does(model: LanguageModel, ids: list[int]) -> None:
    """Else this file would show nothing."""
    assert not same(run(model, ids[:300], ALIGNED + 1), run(model, ids[:300]), 300)


def test_no_prompt(model: LanguageModel) -> None:
    with pytest.raises(ArgumentError, match=r"prompt: expected at least one token, found shape \[1, 0\]"):
        prefill(model.network, mx.array([[]], dtype=mx.int32), model.make_cache())
