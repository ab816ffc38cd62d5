"""Drafts change no token and no likelihood, whoever makes them; states go back to any row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import load_model
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.draft import LookupDrafter
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.sample import Allowed, Sampler, SamplingParams
from mlx_delta.engine.sequence import Clock, TokenSequence
from mlx_delta.engine.speculation import LOOKUP, MTP, PLAIN, Acceptance, Costs, Speculation
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from mlx_delta.model.rows import Span
from support import GOLDEN, TINY

SAMPLING = {
    "greedy": SamplingParams(),
    "warm": SamplingParams(temperature=0.7, top_p=0.9, seed=3),
    "penalties": SamplingParams(temperature=1.0, top_k=20, presence_penalty=1.5, repetition_penalty=1.1, seed=5),
}


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {dtype: load_model(TINY, dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    golden = mx.load(str(GOLDEN / "mtp.safetensors"))
    assert isinstance(golden, dict)
    return [golden[f"{i}.ids"].tolist() for i in range(20)]


@dataclass
class Collect:
    """Tells each token and likelihood; allows few ids at every fifth, and bans others after every third."""

    sampler: Sampler | None = None
    stop: int = 1 << 30
    clock: Clock = field(default_factory=Clock)
    finish_reason: str | None = None
    seen: int = 0

    def allowed(self) -> Allowed | None:
        if self.sampler is None:
            return None
        self.sampler.ban(range(10) if self.seen % 3 == 0 else range(300, 303))
        return range(100, 110) if self.seen % 5 == 4 else None

    def push(self, token: int, likelihood: Likelihood | None) -> Sequence[Any]:
        self.seen += 1
        self.finish_reason = "stop" if self.seen == self.stop else None
        return [(token, likelihood and (likelihood.logprob, likelihood.top))]


def sequence(
    engine: Engine, ids: list[int], params: SamplingParams, drafts: int | None, *, held: bool = False, **options: Any
) -> TokenSequence:
    sampler = Sampler(params, engine.network.config.vocab_size, ids)
    reader = Collect(sampler if held else None, options.pop("stop", 1 << 30))
    speculation = engine.speculation(ids, drafts)
    return TokenSequence(ids, None, sampler, reader, speculation=speculation, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_at_once_and_taken_back_have_the_bits_of_steps(
    models: dict[str, LanguageModel], prompts: list[list[int]], dtype: str
) -> None:
    """Eight rows of one sequence beside those of another, of which any number is kept."""
    network = models[dtype].network
    ids, other, following = prompts[0], prompts[5], mx.array(prompts[7][:8])

    def begun(of: list[int]) -> Cache:
        cache = Cache.empty(network.config)
        mx.eval(network(mx.array([of]), cache), cache.arrays())
        return cache

    steps, expected = begun(ids), []
    for i in range(8):
        rows = network.decode(following[i : i + 1], [steps])
        mx.eval(rows, steps.arrays())
        expected.append((rows, steps.copy()))
    start, beside = begun(ids), begun(other)
    for kept in (1, 2, 5, 8):
        cache, second = start.copy(), beside.copy()
        cache.begin_drafts()
        spans = [Span(cache, 0, 8), Span(second, 8, 3)]
        x, _ = network.advance(mx.concatenate([following, following[:3]]), None, spans)
        assert x is not None
        found = network.logits(x)[:, 0]
        assert mx.array_equal(found[:8], mx.concatenate([rows for rows, _ in expected]))
        cache.end_drafts(kept, 8)
        assert cache.offset == expected[kept - 1][1].offset
        after = following[:1]
        assert mx.array_equal(network.decode(after, [cache]), network.decode(after, [expected[kept - 1][1].copy()]))


def test_tokens_and_likelihoods_are_those_without_drafts(
    models: dict[str, LanguageModel], prompts: list[list[int]], soak: bool
) -> None:
    """Greedy, sampled, with penalties; held to ids and kept from others on the way; alone and side by side."""
    model, accepted = models["bfloat16"], 0
    some = prompts if soak else prompts[3:10:5]
    for (name, params), held in itertools.product(SAMPLING.items(), (False, True)):
        plain = Engine(model.network)
        options = {"most": 64 if soak else 20, "logprobs": 2, "held": held}
        expected = [list(plain.run(sequence(plain, ids, params, 0, **options))) for ids in some]
        for drafts in (1, 2, 3, 4, 7, None) if soak else (4,):
            engine = Engine(model.network)
            for ids, tokens in zip(some, expected, strict=True):
                one = sequence(engine, ids, params, drafts, **options)
                assert list(engine.run(one)) == tokens, (name, held, drafts)
                accepted += one.drafted[1]
        engine = Engine(model.network)
        together = [sequence(engine, ids, params, 1 + i % 4, **options) for i, ids in enumerate(some)]
        for each in together:
            engine.submit(each)
        assert [list(engine.run(each)) for each in together] == expected
    assert accepted > 10


def test_a_cache_covers_what_it_would_without_drafts(
    models: dict[str, LanguageModel], prompts: list[list[int]]
) -> None:
    """Wherever the reader, or the limit, ends it."""
    network = models["float32"].network
    for options in ({"most": 40, "stop": 9}, {"most": 40, "stop": 10}, {"most": 40, "stop": 11}, {"most": 11}):
        caches = []
        for drafts in (0, 3):
            engine = Engine(network)
            one = sequence(engine, prompts[3], SamplingParams(), drafts, **options)
            list(engine.run(one))
            caches.append((one.cache.offset, one.tokens, one.covered))
        assert caches[0] == caches[1]


def test_answers_are_those_without_drafts(models: dict[str, LanguageModel]) -> None:
    """Under a schema, with tools, a budget of thoughts, stop strings and presets."""
    model = models["bfloat16"]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 8}}}
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    cases: list[dict[str, Any]] = [
        {"json_schema": {**schema, "required": ["a", "b"], "additionalProperties": False}},
        {"tools": tools, "tool_choice": "required", "preset": "thinking"},
        {"enable_thinking": True, "thinking_budget": 5, "preset": "thinking"},
        {"stop": "a", "preset": "instruct"},
        {"stop": ["e", "1"], "temperature": 0},
    ]
    for case in cases:
        settings = {"max_new_tokens": 24, "seed": 7, "logprobs": 1, **case}
        messages = [{"role": "user", "content": "What is the weather in Paris? Say 1 2 3 4."}]
        expected = model.chat(messages, speculate=False, **settings)
        model.engine.prefix.clear()
        found = model.chat(messages, speculate=3, **settings)
        model.engine.prefix.clear()
        same = {"usage": expected.usage}
        assert replace(found, **same) == replace(expected, **same), case
        counts = {"prefill_seconds": 0.0, "decode_seconds": 0.0, "drafted_tokens": 0, "accepted_tokens": 0}
        assert replace(found.usage, **counts) == replace(expected.usage, **counts)
        assert found.usage.drafted_tokens > 0


def test_generate_tells_its_drafts(models: dict[str, LanguageModel]) -> None:
    model = models["float32"]
    text = "1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3"
    expected, found = (
        model.generate(text, max_new_tokens=16, temperature=0, speculate=drafts) for drafts in ("off", 2)
    )
    assert found.text() == expected.text()
    assert expected.drafted_tokens == 0
    assert 0 < found.accepted_tokens <= found.drafted_tokens
    with pytest.raises(ArgumentError, match="speculate: expected auto, off, or 1 to 7 drafts, found 8"):
        ChatSettings(speculate=8)
    with pytest.raises(ArgumentError, match="speculate: expected auto, off, or 1 to 7 drafts, found 'some'"):
        ChatSettings(speculate="some")


def test_lookup_copies_what_came_after() -> None:
    drafter = LookupDrafter([1, 2, 3, 4, 5, 9, 9, 1, 2])
    assert not drafter.familiar
    assert drafter.draft(3, 3) == [4, 5, 9]
    drafter.extend([3])
    assert drafter.familiar
    assert drafter.draft(4, 9) == [5, 9, 9, 1, 2, 3]
    assert drafter.draft(7, 3) == []
    assert LookupDrafter([1]).draft(1, 3) == []


def test_acceptance_and_costs() -> None:
    acceptance, costs = Acceptance(), Costs()
    for _ in range(200):
        acceptance.note(2, 1)
    assert acceptance.tokens(1) == pytest.approx(2, abs=0.1)
    assert acceptance.tokens(2) == pytest.approx(2, abs=0.2)
    assert costs.of(MTP, 2) is None
    costs.note(PLAIN, 0, 1.0)
    assert costs.of(MTP, 2) == pytest.approx(1.2)
    for seconds in (1.0, 1.5, 9.0):
        costs.note(MTP, 3, seconds)
    assert costs.of(MTP, 3) == 1.5
    assert costs.of(MTP, 2) == pytest.approx(1.35)
    assert costs.of(LOOKUP, 1) == pytest.approx(1.05)


@pytest.mark.parametrize(("right", "seconds", "wanted"), [(0.9, 0.1, 0.5), (0.0, 0.1, 0.06), (0.5, 1.0, 0.06)])
def test_drafts_are_made_where_they_pay(
    models: dict[str, LanguageModel], right: float, seconds: float, wanted: float
) -> None:
    """A head whose drafts are right so often, and whose passes take so much longer: where it loses, tries are rare."""
    network, rng = models["float32"].network, np.random.default_rng(0)
    speculation = Speculation(network, [1, 2, 3], None, Costs())
    x = mx.zeros((1, 1, network.config.hidden_size))
    passes = with_drafts = 0
    while passes < 300:
        drafts = speculation.draft(mx.array([5], dtype=mx.int32), 7)
        count = 0 if drafts is None else drafts.shape[0]
        kept = next((i for i in range(count) if rng.random() >= right), count)
        speculation.seen(mx.broadcast_to(x, (1, kept + 1, x.shape[2])), [6] * kept, None if drafts is None else count)
        speculation.push(int(rng.integers(4000)))
        speculation.took(1.0 + seconds * count)
        passes, with_drafts = passes + 1, with_drafts + (count > 0)
    assert (with_drafts / passes >= wanted) if wanted == 0.5 else (with_drafts / passes <= wanted)
