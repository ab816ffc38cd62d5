"""Drafts change no answer: however it is asked for, whoever drafts and how many, alone and among others.

``make soak`` asks 500 prompts in each way, with all drafts, or a part of them (``--soak --part 160:168``); otherwise it
is two.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from mlx_delta import load_model
from mlx_delta.chat.result import ChatResult, Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.depth import Depths
from mlx_delta.language_model import LanguageModel
from support import GOLDEN, TINY

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 8}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "warm": {"temperature": 0.7},
    "penalties": {"preset": "instruct"},
    "schema": {"json_schema": SCHEMA},
    "tools": {"tool_choice": "required", "preset": "thinking"},
    "budget": {"enable_thinking": True, "thinking_budget": 5, "preset": "thinking"},
    "stop": {"stop": ["e", "1"], "preset": "instruct"},
}
DRAFTS = (1, 2, 3, 4, "auto", "look-up")
TOKENS = 16
BATCH = 8


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(TINY, dtype="bfloat16", prefix_cache_bytes=256 << 20)


@pytest.fixture(scope="module")
def headless(model: LanguageModel) -> LanguageModel:
    """The same without the head, so that drafts are looked up."""
    network = replace(model.network, mtp=None)
    return LanguageModel(model.path, model.config, network, model.tokenizer, prefix_cache_bytes=256 << 20)


def prompts(count: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Questions and the tools that go with them: the recorded ones, then lines of text."""
    recorded = json.loads((GOLDEN / "tools.json").read_text())
    texts = [each["messages"][-1]["content"] for each in recorded]
    for file in ("heldout.txt", "calibration.txt"):
        lines = [line.strip() for line in (GOLDEN / file).read_text().splitlines()]
        texts += [line[:200] for line in lines if len(line) > 20]
    texts = list(dict.fromkeys(texts))
    assert len(texts) >= count
    return [(text, recorded[i % len(recorded)]["tools"]) for i, text in enumerate(texts[:count])]


def told(result: ChatResult) -> ChatResult:
    """What may not depend on drafts."""
    counts = Usage(completion_tokens=result.usage.completion_tokens, thinking_tokens=result.usage.thinking_tokens)
    return replace(result, usage=replace(counts, prompt_tokens=result.usage.prompt_tokens))


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_drafts(
    model: LanguageModel, headless: LanguageModel, way: str, soak: bool, part: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = Depths.took  # passes that take the same whatever they check, or auto would hardly draft here
    monkeypatch.setattr(Depths, "took", lambda self, seconds, *of: took(self, 1.0, *of))
    drafted = accepted = 0

    def ask(of: LanguageModel, questions: list[tuple[str, list[dict[str, Any]]]], speculate: object) -> list[Any]:
        conversations = [[{"role": "user", "content": text}] for text, _ in questions]
        settings = [
            ChatSettings(
                **{
                    "max_new_tokens": TOKENS,
                    "seed": len(text),
                    "logprobs": 1,
                    "speculate": speculate,
                    **({"tools": tools} if way == "tools" else {}),
                    **WAYS[way],
                }
            )
            for text, tools in questions
        ]
        return of.chat_batch(conversations, settings)

    questions = prompts(500)[part] if soak else prompts(2)
    expected = [told(result) for one in questions for result in ask(model, [one], "off")]
    for drafts, together in itertools.product(DRAFTS, (1, BATCH)) if soak else ((3, 1), ("look-up", 2)):
        of, speculate = (headless, 4) if drafts == "look-up" else (model, drafts)
        for first in range(0, len(questions), together):
            results = ask(of, questions[first : first + together], speculate)
            for found, wanted in zip(results, expected[first : first + together], strict=True):
                assert told(found) == wanted, (way, drafts, together)
            drafted += sum(result.usage.drafted_tokens for result in results)
            accepted += sum(result.usage.accepted_tokens for result in results)
    assert drafted > accepted > 0
