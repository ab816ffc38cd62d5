"""Messages in, answers out: steering, stops, presets, log probabilities, batches, and HF's own tool calls."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import pytest

import mlx_delta
from mlx_delta import ChatSettings, create_tool_definition, load_model
from mlx_delta.chat.messages import prepare_messages
from mlx_delta.chat.parse import OutputParser
from mlx_delta.chat.presets import sampling
from mlx_delta.chat.result import ChatResult
from mlx_delta.chat.tools import ToolCall
from mlx_delta.conversion.pipeline import convert
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.errors import TemplateError
from mlx_delta.language_model import LanguageModel
from mlx_delta.options import GenerationOptions, checked
from mlx_delta.text.tokenizer import GenerationDefaults
from support import GOLDEN

QUESTIONS = json.loads((GOLDEN / "tools.json").read_text(encoding="utf-8"))
COUNT = [{"role": "user", "content": "Count to 7."}]
COUNTED = "1 2 3 4 5 6 7"
PLAIN: dict[str, Any] = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 80}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    out = tmp_path_factory.mktemp("out") / "unsloth"
    return load_model(convert(tiny, out, recipe="unsloth", imatrix=tiny / "imatrix.gguf").path)


def essence(result: ChatResult) -> tuple[object, ...]:
    """What does not depend on the clock."""
    return result.text, result.thinking, result.tool_calls, result.finish_reason, result.num_tokens, result.warnings


def ask(question: dict[str, Any], **others: Any) -> dict[str, Any]:
    thinking = question["enable_thinking"]
    return {"tools": question["tools"], "temperature": 0, "enable_thinking": thinking, "max_new_tokens": 80, **others}


def expected_calls(question: dict[str, Any]) -> list[ToolCall]:
    parser = OutputParser(question["tools"], thinking=question["enable_thinking"])
    events = parser.push(question["completion"].removesuffix("<|im_end|>")) + parser.finish()
    return [event.tool_call for event in events if event.tool_call]


def answers(model: LanguageModel, questions: list[dict[str, Any]]) -> list[ChatResult]:
    """Together; each is what it is alone (test_a_batch_is_its_rows)."""
    settings = [ChatSettings(**ask(question)) for question in questions]
    return model.chat_batch([question["messages"] for question in questions], settings)


def test_tool_calls_are_those_of_transformers(model: LanguageModel, soak: bool) -> None:
    """Of sixty questions half, thinking and not, of two tools and of three; all in a soak."""
    asked = [question for question in QUESTIONS[:: 1 if soak else 2] if question["smallest_margin"] > 0.02]
    assert len(asked) >= (50 if soak else 25)
    for question, result in zip(asked, answers(model, asked), strict=True):
        assert result.tool_calls == expected_calls(question)
        assert result.finish_reason == "tool_calls"
        assert result.thinking.startswith("I should call") == question["enable_thinking"]
        assert not result.text


def test_tool_calls_of_a_stream(model: LanguageModel) -> None:
    """One that thinks and one that does not: events add up to the result."""
    for question in QUESTIONS[:2]:
        events = list(model.chat_stream(question["messages"], **ask(question)))
        assert [event.tool_call for event in events if event.tool_call] == expected_calls(question)
        result = events[-1].result
        assert result is not None
        assert "".join(event.thinking for event in events) == result.thinking
        assert bool(result.thinking) == question["enable_thinking"]


def test_tool_names_survive_quantization(converted: LanguageModel, soak: bool) -> None:
    """Of all sixty, sixty are right."""
    questions = QUESTIONS[:: 1 if soak else 6]
    for question, result in zip(questions, answers(converted, questions), strict=True):
        assert [call.name for call in result.tool_calls] == [call.name for call in expected_calls(question)]


def test_a_padded_batch_has_the_bits_of_its_rows(converted: LanguageModel) -> None:
    """In bfloat16, where the two likeliest tokens often tie: of all sixty, sixty are equal."""
    questions = QUESTIONS[12:20]
    rows = [(question["messages"], ChatSettings(**ask(question))) for question in questions]
    results = converted.chat_batch([messages for messages, _ in rows], [settings for _, settings in rows])
    for question, result in zip(questions, results, strict=True):
        assert essence(result) == essence(converted.chat(question["messages"], **ask(question)))


def test_a_batch_is_its_rows(model: LanguageModel) -> None:
    """Different lengths (one row is padded over more than a chunk of prefill), tools, samplers, and things to force."""
    choices = ["auto", "required", "auto", "none", "search"]
    budgets = [None, 2, 3, None, 0]
    rows: list[tuple[Any, ChatSettings]] = [
        (question["messages"], ChatSettings(**ask(question, tool_choice=choice, thinking_budget=budget)))
        for question, choice, budget in zip(QUESTIONS[:5], choices, budgets, strict=True)
    ]
    rows.append(([{"role": "user", "content": "word " * 600}], ChatSettings(**PLAIN, logprobs=2)))
    rows.append((COUNT, ChatSettings(enable_thinking=False, temperature=0.9, seed=5, max_new_tokens=9)))
    rows.append((COUNT, ChatSettings(**PLAIN, stop=["5"])))
    results = model.chat_batch([messages for messages, _ in rows], [settings for _, settings in rows])
    for (messages, settings), result in zip(rows, results, strict=True):
        alone = model.chat(messages, **settings.options)
        assert essence(result) == essence(alone)
        assert result.usage.prompt_tokens == alone.usage.prompt_tokens
        assert result.logprobs == alone.logprobs


def test_an_answer(model: LanguageModel) -> None:
    model.engine.prefix.clear()
    result = model.chat(COUNT, **PLAIN)
    assert essence(result) == (COUNTED, "", [], "stop", 13, [])
    assert result.message == {"role": "assistant", "content": COUNTED}
    assert (result.usage.completion_tokens, result.usage.thinking_tokens, result.usage.cached_tokens) == (13, 0, 0)
    assert result.usage.prompt_tokens == result.usage.prefilled_tokens == 17
    assert result.usage.prefill_seconds > 0 < result.usage.tokens_per_second


def test_events(model: LanguageModel) -> None:
    events = list(model.chat_stream(COUNT, **PLAIN))
    assert "".join(event.text for event in events) == COUNTED
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) > 5
    counts = [event.num_tokens for event in events]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == 13


def test_length_and_stop_strings(model: LanguageModel) -> None:
    cut = model.chat(COUNT, **{**PLAIN, "max_new_tokens": 3})
    assert (cut.text, cut.finish_reason, cut.num_tokens) == ("1 2", "length", 3)
    for stop, text in (["5"], "1 2 3 4 "), ([" 3 4"], "1 2"), (["nothing", " 6 7 8", "7"], "1 2 3 4 5 6 "):
        result = model.chat(COUNT, **PLAIN, stop=stop)
        assert (result.text, result.finish_reason) == (text, "stop")
        assert "".join(event.text for event in model.chat_stream(COUNT, **PLAIN, stop=stop)) == text
    assert model.chat(COUNT, **PLAIN, stop=["7 8"]).text == COUNTED  # held back, and shown in the end


def test_stop_strings_are_not_looked_for_in_thoughts_and_calls(model: LanguageModel) -> None:
    question = QUESTIONS[0]
    result = model.chat(question["messages"], **ask(question, stop=["I should", "parameter", "napkin"]))
    assert result.tool_calls == expected_calls(question)
    assert result.thinking == "I should call search."


@pytest.mark.parametrize("budget", [0, 1, 3])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_thinking_budget(model: LanguageModel, budget: int, choice: str) -> None:
    question = QUESTIONS[0]
    result = model.chat(question["messages"], **ask(question, thinking_budget=budget, tool_choice=choice))
    assert model.tokenizer.encode(result.thinking) == model.tokenizer.encode("I should call search.")[:budget]
    assert [call.name for call in result.tool_calls] == ["search"]
    assert not result.text
    free = model.chat(question["messages"], **ask(question, thinking_budget=100, tool_choice=choice))
    assert free.thinking == "I should call search."


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", ["create_event", "get_weather", "search"])
def test_tool_choice_names_a_tool(model: LanguageModel, name: str, thinking: bool) -> None:
    question = QUESTIONS[0]  # wants "search"
    result = model.chat(question["messages"], **ask(question, tool_choice=name, enable_thinking=thinking))
    if result.finish_reason == "tool_calls":
        assert [call.name for call in result.tool_calls] == [name]
    assert f"<function={name}>" in result.text or result.tool_calls
    assert result.tool_calls or name == "create_event"  # this model writes no list
    assert result.thinking == ("I should call search." if thinking else "")


@pytest.mark.parametrize("seed", range(6))
def test_tool_choice_required_always_names_one_of_the_tools(model: LanguageModel, seed: int) -> None:
    """At a temperature where anything else is likely."""
    names = ["get_weather", "get_time", "g"]
    tools = [create_tool_definition(name, "", {}) for name in names]
    asked = {"tools": tools, "tool_choice": "required", "temperature": 9.0, "seed": seed, "max_new_tokens": 40}
    result = model.chat(COUNT, **asked, preset="checkpoint", enable_thinking=False, logprobs=0, top_k=0, top_p=1.0)
    written = [p.token for p in result.logprobs]
    text = model.tokenizer.decode(written)
    assert any(text.startswith(f"<tool_call>\n<function={name}>\n") for name in names)


FORCED = [
    create_tool_definition("add", "", {"a": {"type": "integer"}, "b": {"type": ["number", "null"]}}, ["a", "b"]),
    create_tool_definition(
        "light",
        "",
        {"on": {"type": "boolean"}, "room": {"enum": ["hall", 7, None]}, "to": {"$ref": "#/x"}},
        ["on", "room"],
    ),
    create_tool_definition("now", "", {}),
]
FORCED[1]["function"]["parameters"]["x"] = {"anyOf": [{"const": "day"}, {"enum": ["dusk", "dawn"]}]}


@pytest.mark.parametrize("choice", ["required", "add", "light", "now"])
def test_forced_calls_end_as_calls(model: LanguageModel, choice: str) -> None:
    """At a temperature where the end of the answer and anything else is likely: every value is one of its schema's."""
    asked: dict[str, Any] = {"temperature": 30.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 250}
    asked |= {"tools": FORCED, "tool_choice": choice, "enable_thinking": False, "presence_penalty": 0.0}
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in FORCED}
    for result in model.chat_batch([COUNT] * 6, [ChatSettings(**asked, seed=seed) for seed in range(6)]):
        call = result.tool_calls[0]
        jsonschema.validate(call.arguments, schemas[call.name])
        assert choice in ("required", call.name)
        assert "<" not in result.text or choice == "required"
        assert result.finish_reason in (["tool_calls"] if choice != "required" else ["tool_calls", "length"])


def test_a_value_of_a_forced_call_is_free(model: LanguageModel) -> None:
    """But for the end of the answer, which never comes inside: it runs on, or ends as a call."""
    tool = create_tool_definition("say", "", {"text": {"type": "string"}}, ["text"])
    ends = set(model.tokenizer.eos_token_ids)
    asked: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 60, "logprobs": 0, "enable_thinking": False}
    asked |= {"tools": [tool], "tool_choice": "required"}
    for result in model.chat_batch([COUNT] * 6, [ChatSettings(**asked, seed=seed) for seed in range(6)]):
        assert not ends & {p.token for p in result.logprobs}
        assert result.finish_reason == ("tool_calls" if result.tool_calls else "length")


def test_tool_choice_none_calls_nothing(model: LanguageModel) -> None:
    for question in QUESTIONS[:4]:
        result = model.chat(question["messages"], **ask(question, tool_choice="none"))
        assert not result.tool_calls
        assert "<tool_call>" not in result.text
        assert result.text
        assert result.finish_reason == "stop"


def test_log_probabilities(model: LanguageModel) -> None:
    result = model.chat(COUNT, **PLAIN, logprobs=3)
    assert "".join(p.text for p in result.logprobs) == COUNTED
    ids = model.tokenizer.encode(model.render_chat(COUNT, enable_thinking=False))
    chosen = [p.token for p in result.logprobs]
    logits = model.forward([[*ids, *chosen]])[0, len(ids) - 1 : -1]
    values = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for row, p in zip(values, result.logprobs, strict=True):
        assert p.logprob == pytest.approx(row[p.token].item(), abs=1e-4)
        assert p.top[0] == (p.token, p.logprob)  # greedy
        best = mx.argsort(-row)[:3].tolist()
        assert [token for token, _ in p.top] == best
    streamed = [p for event in model.chat_stream(COUNT, **PLAIN, logprobs=3) for p in event.logprobs]
    assert [p.token for p in streamed] == chosen
    assert not model.chat(COUNT, **PLAIN).logprobs


def test_penalties_do_not_count_what_was_overruled(model: LanguageModel) -> None:
    """A presence penalty that forbids repetition: forced tokens count as generated, the ones they replaced do not."""
    asked = ask(QUESTIONS[0], tool_choice="search", enable_thinking=False, logprobs=0, max_new_tokens=30)
    result = model.chat(QUESTIONS[0]["messages"], **asked, presence_penalty=1000.0)
    texts = ["<tool_call>\n<function=search>\n", "<parameter=query>\n"]
    forced = [token for text in texts for token in model.tokenizer.encode(text)]
    tokens = [p.token for p in result.logprobs]
    assert tokens[: len(forced)] == forced
    free = tokens[len(forced) :]
    assert len(set(free)) == len(free)
    assert not set(free) & set(forced)


def test_a_seed_makes_it_repeatable(model: LanguageModel) -> None:
    def run(seed: int) -> str:
        return model.chat(COUNT, temperature=1.5, top_k=0, seed=seed, enable_thinking=False, max_new_tokens=12).text

    assert run(1) == run(1)
    assert len({run(seed) for seed in range(4)}) > 1


def test_presets(model: LanguageModel) -> None:
    small, large = model.config.text, dataclasses.replace(model.config.text, hidden_size=4096)
    stored = GenerationDefaults(do_sample=True, temperature=0.6, repetition_penalty=1.1)

    def params(
        preset: str, thinking: bool, config: Any = large, defaults: Any = stored, **given: float
    ) -> SamplingParams:
        return sampling(preset, checked(given, GenerationOptions), thinking=thinking, config=config, defaults=defaults)

    assert params("auto", True) == SamplingParams(1.0, 20, 0.95, 0.0, 1.5, 1.1)
    assert params("auto", False) == SamplingParams(0.7, 20, 0.8, 0.0, 1.5, 1.1)
    assert params("auto", False, small) == SamplingParams(1.0, 20, 1.0, 0.0, 2.0, 1.1)
    assert params("coding", False) == SamplingParams(0.6, 20, 0.95, 0.0, 0.0, 1.1)
    assert params("checkpoint", True) == SamplingParams(0.6, repetition_penalty=1.1)
    assert params("thinking", False, temperature=0.3, top_k=5) == SamplingParams(0.3, 5, 0.95, 0.0, 1.5, 1.1)
    assert params("auto", True, temperature=0) == SamplingParams()
    assert params("auto", True, temperature=0, presence_penalty=1) == SamplingParams(presence_penalty=1)
    asked_for_greedy = GenerationDefaults(do_sample=False, temperature=0.6, top_k=5)
    assert params("auto", True, defaults=asked_for_greedy) == SamplingParams()
    assert params("auto", True, defaults=asked_for_greedy, top_k=3) == SamplingParams(top_k=3)
    assert params("thinking", True, defaults=asked_for_greedy) == SamplingParams(1.0, 20, 0.95, 0.0, 1.5)
    assert params("auto", True, defaults=asked_for_greedy, temperature=0.3) == SamplingParams(0.3, 20, 0.95, 0.0, 1.5)
    assert params("auto", True, defaults=GenerationDefaults()) == SamplingParams(1.0, 20, 0.95, 0.0, 1.5)


def test_messages_as_clients_send_them(model: LanguageModel) -> None:
    sent = [
        {"role": "developer", "content": "Be brief."},
        *COUNT,
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "system", "content": None},
    ]
    merged = [{"role": "system", "content": "Be brief.\n\nBe kind."}, *COUNT]
    before = json.dumps(sent)
    assert prepare_messages(sent) == merged
    assert json.dumps(sent) == before
    assert prepare_messages(COUNT) == COUNT
    assert prepare_messages(sent, strict=True) == sent
    assert essence(model.chat(sent, **PLAIN)) == essence(model.chat(merged, **PLAIN))
    with pytest.raises(TemplateError, match=r"^Unexpected message role\.$"):
        model.chat(sent, strict=True)
    with pytest.raises(TemplateError, match=r"^No user query found in messages\.$"):
        model.chat(merged[:1])


def test_render_chat(model: LanguageModel) -> None:
    head = "<|im_start|>user\nCount to 7.<|im_end|>\n"
    assert model.render_chat(COUNT, add_generation_prompt=False) == head
    assert model.render_chat(messages=COUNT) == head + "<|im_start|>assistant\n<think>\n"
    shown = model.render_chat(COUNT, enable_thinking=False)
    assert shown == head + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert '"name": "search"' in model.render_chat(COUNT, tools=QUESTIONS[0]["tools"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": "hello"}, "messages: expected a sequence of messages, found 'hello'"),
        ({"messages": []}, "messages: expected at least one message, found none"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]: expected a mapping with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content: expected text or a list of parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"messages\[0\]\.content\[0\]: expected a picture, found a part with type",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, found 0"),
        ({"thinking_budget": -1}, "thinking_budget: expected at least 0, found -1"),
        ({"logprobs": 101}, "logprobs: expected 0 to 100, found 101"),
        ({"preset": "wild"}, "preset: expected one of auto, thinking, coding, instruct, checkpoint, found 'wild'"),
        ({"stop": [""]}, "stop: expected non-empty strings, found ''"),
        ({"tool_choice": "required"}, "tool_choice: expected tools to choose from, found none"),
        ({"tool_choice": "search"}, "tool_choice: expected one of none, auto, required, found 'search'"),
        ({"tools": [{}]}, r"tools\[0\]: expected a function with a name"),
        ({"tools": [{"name": "f>\n"}]}, r"tools\[0\]: expected a name without <, > and line breaks, found 'f>\\n'"),
        ({"tools": [{"name": "f"}] * 2}, r"tools\[1\]: expected a name of its own, found 'f' a second time"),
        ({"top_p": 0}, "top_p: expected > 0 and <= 1, found 0"),
    ],
)
def test_wrong_arguments(model: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.chat(**{"messages": COUNT, **arguments})


def test_wrong_batches(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="conversations: expected at least one, found none"):
        model.chat_batch([])
    with pytest.raises(ValueError, match="settings: expected one, or one for each of 1, found 2"):
        model.chat_batch([COUNT], [ChatSettings()] * 2)


def test_no_template_is_an_error(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "chat_templates", {})
    with pytest.raises(ValueError, match="chat template: expected one in the checkpoint's files, found none"):
        model.chat(COUNT)


def test_public_names() -> None:
    assert mlx_delta.create_tool_definition is create_tool_definition
    assert mlx_delta.function_tool.__module__ == "mlx_delta.chat.functions"
