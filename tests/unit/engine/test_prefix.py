"""What is kept of sequences: the tree, its limit, and how little many conversations compute."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import create_tool_definition, load_model
from mlx_delta.chat.request import common_prefix
from mlx_delta.engine.cuts import Cuts, Turns
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache, DeltaState, KeyValues
from support.reading import kept_bytes

ROWS = Turns(0, (1,))  # ids that begin so may be cut anywhere
DIM = 4


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "bfloat16")


def cache_of(model: LanguageModel, ids: list[int]) -> Cache:
    """As if computed: a row holds its position's id, a state the sum of all ids."""
    rows = mx.array(np.repeat(np.array(ids, np.float32), DIM).reshape(1, 1, -1, DIM))
    spare = mx.zeros((1, 1, 7, DIM))
    layers = [
        DeltaState(mx.array([[[float(len(ids))]]]), mx.array([[[[float(sum(ids))]]]]))
        if kind == "linear_attention"
        else KeyValues(mx.concatenate([rows, spare], axis=2), mx.concatenate([2 * rows, spare], axis=2))
        for kind in model.config.text.layer_types
    ]
    return Cache(layers, len(ids))


def check(cache: Cache, ids: list[int]) -> None:
    assert cache.offset <= len(ids)
    for layer in cache.layers if cache.offset else ():
        if isinstance(layer, KeyValues):
            assert layer.keys is not None
            assert layer.values is not None
            assert layer.keys[0, 0, : cache.offset, 1].tolist() == ids[: cache.offset]
            assert layer.values[0, 0, : cache.offset, 0].tolist() == [2 * i for i in ids[: cache.offset]]
            assert layer.keys.shape[2] > len(ids)
        else:
            assert layer.delta is not None
            assert layer.delta.item() == sum(ids[: cache.offset])


def test_random_sequences_go_on_from_the_last_place_that_is_kept(model: LanguageModel) -> None:
    """Without a limit from the very last; with one from some place, and never is there more than the limit."""
    for seed in range(6):
        rng = random.Random(seed)
        limit = rng.choice([1 << 40, 20_000, 4_000])
        prefix = PrefixCache(model.network, limit, ROWS)
        kept: list[list[int]] = []
        for _ in range(80):
            ids = [0, 1] + (rng.choice(kept)[2:] if kept and rng.random() < 0.7 else [])
            ids = ids[: rng.randrange(2, len(ids) + 1)] + [rng.randrange(2, 4) for _ in range(rng.randrange(1, 9))]
            cache = prefix.resume(ids, Cuts(ids, ROWS))
            check(cache, ids)
            best = max((len(one) for one in kept if len(one) < len(ids) and one == ids[: len(one)]), default=0)
            assert cache.offset == best or (limit < 1 << 40 and cache.offset < best)
            prefix.keep(ids, cache_of(model, ids))
            kept.append(ids)
            assert prefix.nbytes == kept_bytes(prefix) <= limit
        for ids in kept:
            prefix.forget(ids)
        assert prefix.nbytes == kept_bytes(prefix)


def test_rows_that_sequences_share_are_held_once(model: LanguageModel) -> None:
    prefix = PrefixCache(model.network, 1 << 40, ROWS)
    head = [0, 1, *range(2, 100)]
    prefix.keep(head, cache_of(model, head))
    states = prefix._root.children[0].state_bytes
    before = prefix.nbytes
    for i in range(5):
        ids = [*head, 200 + i]
        prefix.keep(ids, cache_of(model, ids))
    rows = (before - states) // len(head)
    assert prefix.nbytes == before + 5 * (states + rows)
    assert prefix.held([*head, 200, 7]) == before + states + rows
    prefix.forget([*head, 200])
    assert prefix.held([*head, 200, 7]) == before


def test_a_place_of_another_turn_is_none(model: LanguageModel) -> None:
    """Ids that go on within a turn of the user, where it was cut as it ended."""
    prefix = PrefixCache(model.network, 1 << 40, ROWS)
    ids = [0, 9, *range(30, 60)]
    prefix.keep(ids, cache_of(model, ids))
    for more, place in (([0, 1, 5], len(ids)), ([8, 8], 0)):
        longer = [*ids, *more]
        assert prefix.resume(longer, Cuts(longer, ROWS)).offset == place


def test_arguments(model: LanguageModel, tiny: Path) -> None:
    with pytest.raises(ValueError, match="ids: expected the 2 that the cache covers, found 1"):
        PrefixCache(model.network, 1, ROWS).keep([1], cache_of(model, [1, 2]))
    with pytest.raises(ArgumentError, match="prefix_cache_bytes: expected at least 0, found -1"):
        load_model("nowhere", prefix_cache_bytes=-1)
    with pytest.raises(ArgumentError, match="memory_bytes: expected a number of bytes, found '1 GB'"):
        load_model("nowhere", memory_bytes="1 GB")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"memory_bytes: expected at least the 2\d+ bytes of the weights, found 99"):
        load_model(tiny, memory_bytes=99)


def test_many_conversations_compute_what_is_new(model: LanguageModel, soak: bool) -> None:
    """Of 5 system messages with tools: within 3 % of the least that a cache of these borders could compute."""
    conversations, turns, heads = (50, 10, 5) if soak else (4, 3, 2)
    model.engine.prefix.clear()
    tool = create_tool_definition("search", "Search the web", {"query": {"type": "string"}}, ["query"])
    said = ["Count to 7.", "Hello, I am Ada.", "What is 12 + 30?", "Search for tea. " * 12]
    rng = random.Random(0)
    histories: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": f"You are number {i % heads}. Answer in one line. " * 9}]
        for i in range(conversations)
    ]
    seen: list[tuple[list[int], list[int]]] = []
    computed = least = 0
    for turn in range(turns):
        for messages in rng.sample(histories, conversations):
            messages.append({"role": "user", "content": f"{turn}: {rng.choice(said)}"})
            thinking = bool(turn % 2)
            stream = model.chat_stream(messages, tools=[tool], max_new_tokens=12, seed=turn, enable_thinking=thinking)
            result = stream.result()
            messages.append(result.message)
            ids = stream.keys[: result.usage.prompt_tokens]
            cuts = Cuts(ids, model.engine.turns)
            shared = (min(common_prefix(one, ids), len(ids) - 1) for one, _ in seen)
            places = (p for most, (_, of) in zip(shared, seen, strict=True) for p in of if p <= most)
            known = max((p for p in places if cuts.before(p) == p), default=0)
            computed, least = computed + result.usage.prefilled_tokens, least + len(ids) - known
            borders = [0]
            while borders[-1] < len(ids):
                borders.append(cuts.border(borders[-1]))
            seen.append((stream.keys, [*borders, len(stream.keys) - 1, len(stream.keys)]))
            assert model.engine.prefix.nbytes <= model.engine.prefix.limit
    assert least <= computed <= 1.03 * least, computed / least
