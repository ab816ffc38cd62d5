"""The positions a model was made for: no prompt beyond them, no answer across their end without a word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mlx_delta import load_model
from mlx_delta.arch.qwen3_5.config import text_config
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.errors import ArgumentError, ConfigError
from mlx_delta.language_model import LanguageModel

COUNT = [{"role": "user", "content": "Count to 7."}]
GREEDY: dict[str, Any] = {"temperature": 0, "enable_thinking": False}
PROMPT = 17  # tokens of COUNT


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


def with_positions(model: LanguageModel, positions: int | None) -> LanguageModel:
    text = dataclasses.replace(model.config.text, max_position_embeddings=positions)
    config = dataclasses.replace(model.config, text=text)
    return LanguageModel(model.path, config, dataclasses.replace(model.network, config=text), model.tokenizer)


def test_an_answer_ends_where_positions_do(model: LanguageModel) -> None:
    whole = model.chat(COUNT, **GREEDY)
    assert (whole.usage.prompt_tokens, whole.num_tokens, whole.warnings) == (PROMPT, 13, [])
    small = with_positions(model, PROMPT + 4)
    alone = small.chat(COUNT, **GREEDY)
    session = small.session().chat(COUNT, **GREEDY)
    (row,) = small.chat_batch([COUNT], **GREEDY)
    (*_, told, done) = small.chat_stream(COUNT, **GREEDY)
    for result in (alone, session, row, done.result):
        assert result is not None
        assert (result.text, result.finish_reason, result.num_tokens) == ("1 2 ", "length", 4)
        assert result.warnings == [told.warning]
    prompt = small.render_chat(COUNT, enable_thinking=False)
    generation = small.generate(prompt, temperature=0)
    assert (generation.text(), generation.finish_reason) == ("1 2 ", "length")
    assert generation.warnings == alone.warnings
    assert alone.warnings[0].startswith(f"the answer was cut where the model's positions end: {PROMPT + 4}")


def test_an_answer_that_fits_is_as_ever(model: LanguageModel) -> None:
    """The end token is one more; what max_new_tokens cuts is no matter of positions."""
    for positions in (PROMPT + 14, None):
        result = with_positions(model, positions).chat(COUNT, **GREEDY)
        assert (result.finish_reason, result.warnings) == ("stop", [])
    cut = with_positions(model, PROMPT + 4).chat(COUNT, **GREEDY, max_new_tokens=4)
    assert (cut.finish_reason, cut.warnings) == ("length", [])


def test_rows_of_a_batch_have_their_own_room(model: LanguageModel) -> None:
    long = [{"role": "user", "content": "Count to 7. " * 4}]
    small = with_positions(model, 40)
    settings = [ChatSettings(**GREEDY), ChatSettings(**GREEDY, max_new_tokens=3)]
    first, second = small.chat_batch([COUNT, long], settings)
    assert first.text == "1 2 3 4 5 6 7"
    assert (second.num_tokens, second.warnings) == (3, [])


@pytest.mark.parametrize("positions", [PROMPT, PROMPT - 1, 13])
def test_a_prompt_without_room_for_an_answer(model: LanguageModel, positions: int) -> None:
    small = with_positions(model, positions)
    expected = f"expected a prompt of less than {positions} tokens, the model's max_position_embeddings, found {PROMPT}"
    session = small.session()
    for ask in (small.chat, small.chat_stream, session.chat):
        with pytest.raises(ArgumentError, match=f"^messages: {expected}"):
            ask(COUNT, **GREEDY)
    with pytest.raises(ArgumentError, match=rf"^conversations\[1\]: {expected}"):
        with_positions(model, positions).chat_batch([[{"role": "user", "content": ""}], COUNT], **GREEDY)
    with pytest.raises(ArgumentError, match=f"^prompt: {expected}"):
        small.generate(small.render_chat(COUNT, enable_thinking=False))


def test_what_the_config_says(model: LanguageModel) -> None:
    raw = dict(model.config.raw)
    assert model.config.text.max_position_embeddings == raw["text_config"]["max_position_embeddings"] == 8192
    for value, found in ((None, None), (100, 100)):
        edited = {**raw, "text_config": {**raw["text_config"], "max_position_embeddings": value}}
        assert text_config(edited, "config.json").max_position_embeddings == found
    with pytest.raises(ConfigError, match="max_position_embeddings: expected a positive integer, found 0"):
        text_config({**raw, "text_config": {**raw["text_config"], "max_position_embeddings": 0}}, "config.json")
