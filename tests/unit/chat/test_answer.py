"""Answers token by token, without a model: however an output is cut into tokens, the same comes out, and no tag."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from test_parse import ADD_CALL, ADDED, CASES, FRAGMENTS, TOOLS, assert_no_tag_leaks

from mlx_delta.chat.answer import Answer
from mlx_delta.chat.parse import Event
from mlx_delta.chat.request import ChatSettings
from mlx_delta.chat.result import ChatEvent, ChatResult
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.from_dir(tiny)


def answer(tokenizer: Tokenizer, ids: list[int], thinking: bool, **settings: Any) -> tuple[list[ChatEvent], ChatResult]:
    """Pushed until it ends; the end token comes last."""
    chosen = ChatSettings(tools=TOOLS, **settings)
    state = Answer(tokenizer, chosen, Sampler(SamplingParams(), tokenizer.vocab_size), thinking=thinking)
    events: list[ChatEvent] = []
    for token in [*ids, tokenizer.eos_token_ids[0]]:
        if state.finish_reason is None:
            events += state.push(token)
    result = state.result()
    assert result.text == "".join(event.text for event in events)
    assert result.thinking == "".join(event.thinking for event in events)
    assert result.tool_calls == [event.tool_call for event in events if event.tool_call]
    assert_no_tag_leaks([Event(event.text, event.thinking, event.tool_call, event.warning) for event in events])
    return events, result


def essence(result: ChatResult) -> tuple[object, ...]:
    return result.text, result.thinking, result.tool_calls, result.finish_reason, result.warnings


class Cutter:
    """Text into tokens at random: any that its bytes begin with, added tokens among them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids: dict[bytes, int] = {}
        for token in range(tokenizer.vocab_size):
            if token not in tokenizer.special_ids:
                self._ids.setdefault(tokenizer.token_bytes(token), token)
        self._longest = max(map(len, self._ids))

    def cut(self, text: str, rng: random.Random, longest: int | None = None) -> list[int]:
        data, ids = text.encode(), []
        while data:
            lengths = [n for n in range(1, (longest or self._longest) + 1) if data[:n] in self._ids and n <= len(data)]
            length = rng.choice(lengths)
            ids.append(self._ids[data[:length]])
            data = data[length:]
        return ids


@pytest.fixture(scope="module")
def cutter(tokenizer: Tokenizer) -> Cutter:
    return Cutter(tokenizer)


@pytest.mark.parametrize(("output", "thinking"), [case[:2] for case in CASES])
def test_tokens_do_not_matter(tokenizer: Tokenizer, cutter: Cutter, output: str, thinking: bool) -> None:
    rng = random.Random(output)
    _, whole = answer(tokenizer, tokenizer.encode(output), thinking)
    assert tokenizer.decode(cutter.cut(output, rng)) == output
    for longest in [1, *[None] * 20]:
        _, result = answer(tokenizer, cutter.cut(output, rng, longest), thinking)
        assert essence(result) == essence(whole)


def test_random_outputs(tokenizer: Tokenizer, cutter: Cutter) -> None:
    """800 outputs of fragments of calls, each in three tokenizations, some with stop strings and choices."""
    rng = random.Random(2)
    for _ in range(800):
        output = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 10)))
        thinking = rng.random() < 0.5
        settings: dict[str, Any] = {
            "stop": rng.choice([[], [], ["xt t"], ["🦙", "\n\n"], ["<", "> "]]),
            "tool_choice": rng.choice(["auto", "auto", "none"]),
        }
        _, whole = answer(tokenizer, tokenizer.encode(output), thinking, **settings)
        for longest in (1, 4, None):
            _, result = answer(tokenizer, cutter.cut(output, rng, longest), thinking, **settings)
            assert essence(result) == essence(whole), output
        assert not any(stop in whole.text for stop in settings["stop"]) or whole.warnings


def test_random_tokens(tokenizer: Tokenizer) -> None:
    """2,000 sequences of ids at random: broken UTF-8, special tokens, ids beyond the vocabulary, tags out of order."""
    rng = random.Random(3)
    tags = [tokenizer.encode(tag)[0] for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    broken = [i for i in range(tokenizer.vocab_size) if "\ufffd" in tokenizer.decode([i])]
    for _ in range(2000):
        pools = [tags, broken, range(tokenizer.vocab_size + 20), tokenizer.encode(rng.choice(FRAGMENTS))]
        ids = [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 40))]
        ids = [token for token in ids if token not in tokenizer.eos_token_ids]
        answer(tokenizer, ids, rng.random() < 0.5)


@pytest.mark.parametrize("schema", [None, {"type": "integer"}])
def test_a_call_among_thoughts_is_left_alone(tokenizer: Tokenizer, schema: dict[str, Any] | None) -> None:
    """Neither the budget nor what follows thoughts breaks into a call that begins before they are closed."""
    settings = ChatSettings(tools=TOOLS, thinking_budget=6, json_schema=schema)
    state = Answer(tokenizer, settings, Sampler(SamplingParams(), tokenizer.vocab_size), thinking=True)
    for token in tokenizer.encode(f"I add.\n{ADD_CALL}"):
        allowed = state._constraints.allowed()
        assert allowed is None or token in allowed
        state.push(token)
    allowed = state._constraints.allowed()
    state._ban()
    assert allowed is None or tokenizer.eos_token_ids[0] in allowed
    assert tokenizer.eos_token_ids[0] not in state._banned
    state.push(tokenizer.eos_token_ids[0])
    result = state.result()
    assert result.tool_calls == [ADDED]
    assert result.thinking == "I add."
    assert state.thinking_tokens <= len(tokenizer.encode("I add.\n<tool_call>"))


def test_broken_characters_wait_and_end_as_replacement(tokenizer: Tokenizer, cutter: Cutter) -> None:
    llama = cutter.cut("🦙", random.Random(0), 1)
    events, result = answer(tokenizer, [*llama, *llama[:2]], thinking=False)
    assert [event.text for event in events] == ["🦙", "\ufffd"]
    assert result.text == "🦙\ufffd"
