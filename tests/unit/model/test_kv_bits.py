"""Keys and values in 8 bits: how far answers are from those without, what they take, and who says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta import load_model
from mlx_delta.engine.engine import Engine
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache, KeyValues, kv_bytes
from support import GOLDEN


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32", kv_bits=8)


@pytest.fixture(scope="module")
def ids(model: LanguageModel) -> list[int]:
    return model.tokenizer.encode((GOLDEN / "heldout.txt").read_text())[:768]


def log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def test_predictions_are_those_of_float32_but_for_a_little(model: LanguageModel, ids: list[int]) -> None:
    """A mean KLD of 2.2e-6 over 4096 tokens is recorded; other roundings in bfloat16 change 2.0e-5."""
    plain = replace(model.network, kv_bits=None)
    p = log_softmax(plain(mx.array([ids]), plain.empty_cache())[0])
    q = log_softmax(model.forward([ids])[0])
    assert 1e-9 < mx.mean(mx.sum(mx.exp(p) * (p - q), axis=-1)).item() < 5e-6
    assert mx.mean(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)).item() > 0.995


def test_what_is_computed_at_once_in_pieces_and_row_by_row_is_kept_alike(model: LanguageModel, ids: list[int]) -> None:
    """The first attention layer's rows are bytes of their own tokens alone, whatever came in one piece with them."""
    whole, pieces = model.make_cache(), model.make_cache()
    model.forward([ids[:192]], whole)
    for start, end in ((0, 64), (64, 128), (128, 192)):
        model.forward([ids[start:end]], pieces)
    for a, b in zip(whole.layers, pieces.layers, strict=True):
        if isinstance(a, KeyValues):
            for x, y in zip(a.arrays(), b.arrays(), strict=True):
                assert x.dtype == mx.uint8
                assert mx.array_equal(x[:, :, :192], y[:, :, :192])


def test_a_token_takes_half_the_bytes(model: LanguageModel, ids: list[int]) -> None:
    """Counted in the cache, and by what admits sequences."""
    config, network = model.config.text, model.network
    assert kv_bytes(config, mx.bfloat16, 8) == 264 * 2 * config.num_key_value_heads
    assert kv_bytes(config, mx.bfloat16, 8) < 0.52 * kv_bytes(config, mx.bfloat16)
    cache = model.make_cache()
    mx.eval(model.forward([ids[:300]], cache))
    rows = [layer for layer in cache.layers if isinstance(layer, KeyValues)]
    assert sum(a.nbytes for layer in rows for a in layer.arrays()) == len(rows) * 512 * kv_bytes(config, mx.float32, 8)
    need = Cache.bytes_of(config, network.dtype, 2000, 8)
    assert need < 0.6 * Cache.bytes_of(config, network.dtype, 2000)
    engine = Engine(network, memory=network.nbytes + need)
    fits, refused = (model.generate([1], max_new_tokens=n)._sequence for n in (1999, 3000))
    engine.submit(fits)
    with pytest.raises(ArgumentError, match="max_new_tokens=3000"):
        engine.submit(refused)


@pytest.mark.parametrize("bits", [4, 16, 0, True, "8"])
def test_other_widths_are_refused_before_anything_is_read(bits: object) -> None:
    with pytest.raises(ArgumentError, match=f"kv_bits: expected 8, or None .*, found {bits!r}"):
        load_model("nowhere", kv_bits=bits)  # type: ignore[arg-type]
