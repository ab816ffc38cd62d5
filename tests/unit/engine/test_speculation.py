"""Drafts change no token and no likelihood, whoever makes them; states go back to any row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import load_model
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.depth import LOOKUP, MTP, Drafts
from mlx_delta.engine.draft import LookupDrafter, MtpDrafter
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.sample import Allowed, Sampler, SamplingParams
from mlx_delta.engine.sequence import Clock, TokenSequence
from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
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
    """Greedy, sampled, with penalties; held to ids and kept from others on the way; alone, and side by side in steps
    of two threads."""
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
        assert from_threads([engine.run(each) for each in together]) == expected
    assert accepted > 10


def from_threads(runs: Sequence[Iterator[Any]]) -> list[list[Any]]:
    """Their events in turn, asked for in two threads, now in the one and now in the other."""
    found: list[list[Any]] = [[] for _ in runs]
    left = list(zip(runs, found, strict=True))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        pools = itertools.cycle([one, one, other])
        while left:
            for run, events in list(left):
                event = next(pools).submit(next, run, None).result()
                if event is None:
                    left.remove((run, events))
                else:
                    events.append(event)
    return found


@pytest.mark.parametrize("name", SAMPLING)
def test_a_step_with_drafts_is_waited_for_once(
    models: dict[str, LanguageModel], prompts: list[list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts, rows and choices are one graph: after its tokens were read, no other array is waited for."""
    engine = Engine(models["bfloat16"].network)
    one = sequence(engine, prompts[3], SAMPLING[name], 3, most=80)
    waits, passes = list[str](), list[int]()
    decode, counted = engine._steps._decode, SimpleNamespace(array=lambda a: (waits.append("array"), np.array(a))[1])
    events = engine.run(one)
    next(events)
    monkeypatch.setattr(engine._steps, "_decode", lambda rows: (decode(rows), passes.append(len(one.tokens)))[0])
    monkeypatch.setattr("mlx_delta.engine.sequence.np", counted)
    for place, called in ((mx.array, "item"), (mx.array, "tolist"), (mx, "eval"), (mx, "synchronize")):
        found = getattr(place, called)
        monkeypatch.setattr(
            place, called, lambda *of, found=found, called=called: (waits.append(called), found(*of))[1]
        )
    list(islice(events, 30))
    assert one.drafted[1] > 3
    assert waits == ["array", "array"] * len(passes)  # the tokens, and the drafts that they were computed from


def test_a_sequence_that_goes_on_drafts_as_if_it_had_begun(
    models: dict[str, LanguageModel], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the head reads of the tokens that are kept of another, and counted among them."""
    model, read = models["bfloat16"], list[int]()
    draft = Network.draft
    monkeypatch.setattr(Network, "draft", lambda *of, **last: (read.append(of[1].shape[1]), draft(*of, **last))[1])

    def second(engine: Engine) -> tuple[int, int, int, int]:
        """How long the conversation is, how much is known of it, what the head reads of it, and how much comes true."""
        begun = sequence(engine, prompts[9], SamplingParams(), 2, most=12)
        list(engine.run(begun))
        ids = begun.ids + begun.tokens + prompts[3]
        known = engine.known(ids, ids)
        read.clear()
        again = sequence(engine, ids, SamplingParams(), 2, most=20)
        list(engine.run(again))
        return len(ids), known, read[0], again.drafted[1]

    turns = model.engine.turns
    fresh, kept = Engine(model.network, turns), Engine(model.network, turns, prefix_bytes=64 << 20)
    length, known, reads, accepted = second(fresh)
    assert (known, reads) == (0, length)
    length, known, *found = second(kept)
    assert known > 0
    assert found == [reads, accepted]

    plain = Engine(model.network, turns, prefix_bytes=64 << 20)
    list(plain.run(sequence(plain, prompts[9], SamplingParams(), 0, most=12)))
    assert second(plain)[2] < length  # for nothing was drafted there, the first time
    for limit in (kept.prefix.nbytes // 2, 0):
        kept.prefix.shrink(limit)
        assert 0 <= kept.prefix.nbytes <= limit


def test_drafts_that_are_not_made_cost_nothing(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens the head might read, a step touches the last alone."""
    engine, read = Engine(models["bfloat16"].network), list[int]()
    draft, network = Network.draft, engine.network
    monkeypatch.setattr(Network, "draft", lambda *of, **last: (read.append(of[1].shape[1]), draft(*of, **last))[1])
    speculation, x = engine.speculation([1] * 1000, None), mx.zeros((1, 1, network.config.hidden_size), network.dtype)
    assert speculation is not None
    for trial, most in ((False, 512), (True, 64)):  # of which it reads no more than so many
        for _ in range(1000):
            speculation.push(1)
            speculation.see(x, 1000 + len(speculation._pushed))
            assert len(speculation.arrays()) == 1
        assert speculation.wish(1).most[MTP] == 1
        found = speculation.draft(mx.array([1]), Drafts(MTP, 1, trial))
        assert found is not None
        assert read == [most]
        read.clear()
        assert len(speculation.arrays()) == 2  # its keys and values
        speculation = engine.speculation([1] * 1000, None)
        assert speculation is not None


def test_with_experts_too(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain answers, whoever drafts; as many drafts are right as the head's logits over the whole text say. Then drafts
    that are right up to any place, which those of random experts are not."""
    model = load_model(experts, "bfloat16")
    prompts, most = [[1, 2, 3] * 10, list(range(100, 130))], 24
    for params in SAMPLING.values():
        plain, engine = Engine(model.network), Engine(model.network)
        answers = [list(plain.run(sequence(plain, ids, params, 0, most=most, logprobs=2))) for ids in prompts]
        drafting = [
            sequence(engine, ids, params, k, most=most, logprobs=2) for ids, k in zip(prompts, (1, 3), strict=True)
        ]
        for each in drafting:
            engine.submit(each)
        assert [list(engine.run(each)) for each in drafting] == answers

        ids, tokens = prompts[0], drafting[0].tokens
        chosen = np.array(mx.argmax(model.mtp_logits([ids + tokens]), axis=-1))[0, len(ids) - 1 :]
        drafted = accepted = place = 0
        while place <= most - 3:
            right = chosen[place] == tokens[place + 1]
            drafted, accepted, place = drafted + 1, accepted + right, place + 1 + right
        assert drafting[0].drafted == (drafted, accepted)

        ids, expected = prompts[1], answers[1]
        for right in (1, 2, 3):
            with monkeypatch.context() as patch:
                patch.setattr(MtpDrafter, "draft", right_drafts(len(ids), [token for token, _ in expected], right))
                one = sequence(engine, ids, params, 3, most=most, logprobs=2)
                assert list(engine.run(one)) == expected
            assert one.drafted[1] >= right * most // (right + 2)


def right_drafts(start: int, answer: list[int], right: int) -> Callable[..., tuple[mx.array, None]]:
    """In place of ``MtpDrafter.draft``: the first ``right`` tokens of an answer to a prompt of length ``start``, as it
    goes on; then others."""

    def draft(self: MtpDrafter, token: mx.array, count: int, **timed: bool) -> tuple[mx.array, None]:
        place = len(self._text) - start + 1
        known = answer[place : place + min(count, right)]
        return mx.array([*known, *[5] * (count - len(known))], dtype=mx.int32), None

    return draft


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


def test_look_up_is_judged_without_drafts(models: dict[str, LanguageModel]) -> None:
    engine = Engine(models["bfloat16"].network)
    speculation = engine.speculation([1, 2, 3, 4, 5, 6, 7] * 2, None)
    assert speculation is not None
    for token in [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]:
        speculation.push(token)
    assert speculation.wish(2).most[LOOKUP] == 2
    assert engine._depths.acceptance[LOOKUP].rates(1)[0] > 0.8
    for token in [9, 1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 1, 2, 3, 6]:
        speculation.push(token)
    speculation.wish(2)
    assert engine._depths.acceptance[LOOKUP].rates(1)[0] < 0.7


def test_ranks_leave_no_number_to_their_clocks(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(models["float32"].network)
    assert engine.speculation([1], None) is not None
    monkeypatch.setattr(Network, "ranked", True)
    assert engine.speculation([1], None) is None
    assert engine.speculation([1], 2) is not None
