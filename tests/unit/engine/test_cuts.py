"""Cuts of a prompt: by its ids alone, and a cache that ends at one has the bits of every other that does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta import load_model
from mlx_delta._core import DECODE_TOKENS
from mlx_delta.engine.cuts import ALIGNED, CHUNK, Cuts, Turns
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache, KeyValues
from support.reading import Collect

TURNS = Turns(7, (5, 6))


def conversation(rng: random.Random, turns: Turns = TURNS, tokens: tuple[int, int] = (10, 300)) -> list[int]:
    """Turns of 1 to 150 tokens, every second one the assistant's; sometimes with tokens before all turns."""
    ids = [rng.randrange(*tokens) for _ in range(rng.choice([0, 0, 0, 5, 70]))]
    for turn in range(rng.randrange(1, 7)):
        ids += [turns.start or 0, *(turns.assistant if turn % 2 else ())]
        ids += [rng.randrange(*tokens) for _ in range(rng.choice([0, 1, 14, 15, 16, 17, 40, 63, 64, 80, 150]))]
    return ids


def test_pieces_are_of_one_kind_and_end_where_nothing_depends_on_what_follows() -> None:
    rng = random.Random(0)
    for _ in range(300):
        ids = conversation(rng)
        cuts, most = Cuts(ids, TURNS), rng.choice([64, 128, 512])
        start = 0
        while start < len(ids):
            pieces = cuts.pieces(start, len(ids), most)
            assert sum(piece.end - piece.start for piece in pieces) <= most or len(pieces) == 1
            for piece in pieces:
                assert piece.start == start < piece.end
                assert piece.end - start <= most + DECODE_TOKENS
                assert cuts.before(piece.end) == piece.end or piece.end == len(ids)
                assert piece.tiles == (piece.end - start > DECODE_TOKENS) or not piece.tiles
                assert not [i for i in range(start + 1, piece.end) if ids[i] == TURNS.start]
                turn = max((i for i in cuts.starts if i <= start), default=0)
                if ids[turn : turn + 3] == [7, 5, 6]:
                    assert not piece.tiles
                else:
                    assert (start - turn) % ALIGNED == 0
                    assert piece.tiles == (piece.end - start > DECODE_TOKENS)
                start = piece.end


def test_places_depend_on_what_is_before_them_alone() -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids, other = conversation(rng), conversation(rng)
        cuts = Cuts(ids, TURNS)
        place = cuts.before(rng.randrange(len(ids) + 1))
        for more in ([], other):
            beyond = [*ids[:place], 7, *more]
            assert Cuts(beyond, TURNS).before(place) == place


@pytest.fixture(scope="module", params=["float32", "bfloat16", "bfloat16, keys and values in 8 bits"])
def model(request: Any, tiny: Path) -> LanguageModel:
    dtype, *kept = request.param.split(",")
    return load_model(tiny, dtype, kv_bits=8 if kept else None)


def computed(model: LanguageModel, ids: list[int], cache: Cache) -> mx.array:
    """The cache advanced over the ids by an engine of its own: the logits after them."""
    sequence = TokenSequence(ids, cache, Sampler(SamplingParams(), 400), Collect(), most=1)
    list(Engine(model.network, model.engine.turns).run(sequence))
    return sequence._logits


def same(a: Cache, b: Cache) -> bool:
    assert a.offset == b.offset
    for layer, other in zip(a.layers, b.layers, strict=True):
        for x, y in zip(layer.arrays(), other.arrays(), strict=True):
            rows = isinstance(layer, KeyValues)
            x, y = (x[:, :, : a.offset], y[:, :, : a.offset]) if rows else (x, y)
            if not mx.array_equal(x, y).item():
                return False
    return True


def test_whatever_is_kept_or_decoded_the_bits_are_those_of_a_fresh_cache(model: LanguageModel) -> None:
    rng = random.Random(2)
    turns = model.engine.turns
    for _ in range(6 if model.network.kv_bits else 12):
        ids = conversation(rng, turns)
        cuts = Cuts(ids, turns)
        fresh = model.make_cache()
        logits = computed(model, ids, fresh)
        kept = model.make_cache()
        for place in sorted({cuts.before(rng.randrange(len(ids))) for _ in range(3)} - {0}):
            computed(model, ids[:place], kept)  # which ends there
        again = computed(model, ids, kept)
        assert same(kept, fresh)
        assert mx.array_equal(logits, again).item()


def test_an_answer_that_was_generated_is_the_one_that_is_given(model: LanguageModel) -> None:
    """Token by token, beside others or not, and in one prompt."""
    rng = random.Random(3)
    turns = model.engine.turns
    assert turns.start is not None
    ids = [turns.start, *(rng.randrange(300) for _ in range(90)), turns.start, *turns.assistant]
    cache = model.make_cache()
    sequence = TokenSequence(ids, cache, Sampler(SamplingParams(1.0, seed=1), 300), Collect(), most=100)
    list(Engine(model.network, turns).run(sequence))
    covered = sequence.covered
    assert covered is not None
    assert len(covered) > len(ids) + 90
    fresh = model.make_cache()
    computed(model, covered, fresh)
    assert same(cache, fresh)
    unopened = TokenSequence(ids[:91], model.make_cache(), sequence.sampler, Collect(), most=5)
    list(Engine(model.network, turns).run(unopened))
    assert unopened.covered is None  # a prompt that has these tokens goes on with the user's turn, by tiles


def test_another_question_about_a_text_without_turns_goes_on_from_the_last_whole_pass(model: LanguageModel) -> None:
    rng = random.Random(4)
    text = [rng.randrange(300) for _ in range(CHUNK + 90)]
    engine = Engine(model.network, model.engine.turns, prefix_bytes=1 << 30)
    for question, known in (([1, 2], 0), ([3], CHUNK)):
        ids = [*text[: CHUNK + 90 - len(question)], *question]
        assert engine.known(ids, ids) == known
        sequence = TokenSequence(ids, None, Sampler(SamplingParams(), 400), Collect(), most=1)
        list(engine.run(sequence))
        assert mx.array_equal(sequence._logits, computed(model, ids, model.make_cache())).item()
