"""Generation on the tiny model: pieces, stops, sampling arguments, pipelining, figures."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from mlx_delta.text.stop import StopStrings

COUNT = "<|im_start|>user\nCount to 7.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, dtype="float32")


def test_pieces_join_to_the_text_and_the_ids_decode_to_it(model: LanguageModel) -> None:
    generation = model.generate(COUNT, temperature=0)
    pieces = list(generation)
    text = "".join(pieces)
    assert text == "1 2 3 4 5 6 7"
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.token for piece in pieces] == generation.token_ids  # ASCII: each token completes a piece
    assert len(pieces) > 3
    assert model.tokenizer.decode(generation.token_ids) == text
    assert generation.finish_reason == "stop"


def test_length_ends_it(model: LanguageModel) -> None:
    generation = model.generate(COUNT, temperature=0, max_new_tokens=3)
    assert generation.text() == "1 2"
    assert len(generation.token_ids) == 3
    assert generation.finish_reason == "length"


def test_token_ids_are_a_prompt_too(model: LanguageModel) -> None:
    assert model.generate(model.tokenizer.encode(COUNT), temperature=0).text() == "1 2 3 4 5 6 7"


@pytest.mark.parametrize(
    ("stop", "text"), [(["5"], "1 2 3 4 "), ([" 3 4"], "1 2"), (["nothing", " 6 7 8", "7"], "1 2 3 4 5 6 ")]
)
def test_stop_strings_cut_the_text(model: LanguageModel, stop: list[str], text: str) -> None:
    generation = model.generate(COUNT, temperature=0, stop=stop)
    assert generation.text() == text
    assert generation.finish_reason == "stop"


def test_a_held_back_start_of_a_stop_string_is_shown_in_the_end(model: LanguageModel) -> None:
    assert model.generate(COUNT, temperature=0, stop=["7 8"]).text() == "1 2 3 4 5 6 7"


def test_stop_strings_at_every_cut() -> None:
    text, stops = "one <two> three", ["<two>", "three!"]
    for at in range(len(text)):
        stop = StopStrings(stops)
        shown = stop.push(text[:at])
        if not stop.stopped:
            shown += stop.push(text[at:])
        assert shown == "one "
        assert stop.stopped


def test_the_checkpoint_decides_what_is_not_given(model: LanguageModel) -> None:
    params = model.generate(COUNT)._sequence.sampler.params
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
    params = model.generate(COUNT, temperature=0.9, min_p=0.1)._sequence.sampler.params
    assert (params.temperature, params.top_k, params.min_p) == (0.9, 20, 0.1)


def test_a_seed_makes_it_repeatable(model: LanguageModel) -> None:
    def run(seed: int) -> list[int]:
        generation = model.generate("def ", max_new_tokens=24, temperature=1.5, top_k=0, top_p=1.0, seed=seed)
        generation.text()
        return generation.token_ids

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_padding_rows_of_the_vocabulary_are_never_sampled(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the 9B, whose tokenizer knows 248077 of 248320 rows; the tiny one knows all of its 4096."""
    monkeypatch.setattr(model.tokenizer, "vocab_size", 300)
    generation = model.generate("x", max_new_tokens=200, temperature=50.0, top_k=0, top_p=1.0, seed=3)
    generation.text()
    assert len(set(generation.token_ids)) > 100
    assert max(generation.token_ids) < 300


def test_presence_penalty_forbids_repetition(model: LanguageModel) -> None:
    generation = model.generate("a a a a", max_new_tokens=40, temperature=0, presence_penalty=1000.0)
    generation.text()
    assert len(set(generation.token_ids)) == len(generation.token_ids)


def test_the_next_step_is_under_way_when_a_token_comes(model: LanguageModel) -> None:
    """Pipelining: when the first piece is here, the cache already covers its token."""
    generation = model.generate(COUNT, temperature=0)
    next(generation)
    assert generation._sequence.cache.offset == len(generation.prompt_ids) + 1


def test_figures(model: LanguageModel) -> None:
    generation = model.generate(COUNT, temperature=0)
    generation.text()
    assert generation.prompt_tokens_per_second > 0
    assert generation.tokens_per_second > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, found 0"),
        ({"temperature": -1}, "temperature: expected >= 0, found -1"),
        ({"top_p": 0}, "top_p: expected > 0 and <= 1, found 0"),
        ({"stop": [""]}, "stop: expected non-empty strings, found ''"),
    ],
)
def test_wrong_arguments(model: LanguageModel, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate("x", **arguments)


def test_wrong_prompts(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prompt: expected at least one token, found none"):
        model.generate("")
    with pytest.raises(ValueError, match="tokens: expected ids from 0 to 4095, found 5000"):
        model.generate([5000])


def test_repeated_runs_do_not_grow_memory(model: LanguageModel) -> None:
    model.generate(COUNT, temperature=0).text()
    mx.clear_cache()
    before = mx.get_active_memory()
    for _ in range(3):
        model.generate(COUNT, temperature=0).text()
    mx.synchronize()  # the step begun ahead of the end token
    assert mx.get_active_memory() - before < 1_000_000
