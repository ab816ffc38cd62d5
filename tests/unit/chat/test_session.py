"""Sessions: what is computed again and what is not, and that it makes no difference to the answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta import create_tool_definition, load_model
from mlx_delta.chat.prefix import PrefixCache
from mlx_delta.chat.request import ChatSettings, Prompt
from mlx_delta.chat.session import Session
from mlx_delta.language_model import LanguageModel

COUNT = [{"role": "user", "content": "Count to 7."}]
PLAIN: dict[str, Any] = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 60}
SEARCH = create_tool_definition("search", "Search the web", {"query": {"type": "string"}}, ["query"])
ADD = create_tool_definition("add", "Add", {"a": {"type": "integer"}, "b": {"type": "integer"}}, ["a", "b"])


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


def held(session: Session) -> list[int]:
    """The ids up to the newest mark."""
    return session._prefix._ids


def assert_equal_to_fresh(model: LanguageModel, logits: mx.array, ids: list[int]) -> None:
    """float32 logits [1, V] after ``ids``, against one pass without any cache."""
    fresh = model.forward([ids])[:, -1]
    error = mx.sqrt(mx.mean((logits - fresh) ** 2) / mx.mean(fresh**2)).item()
    assert error < 1e-5


def next_turn(model: LanguageModel, session: Session, messages: list[dict[str, Any]], **settings: Any) -> int:
    """Prefill the next prompt over what the session holds: equal logits; how many tokens were there already."""
    logits, ids, cached = prefilled(session, messages, **settings)
    assert_equal_to_fresh(model, logits, ids)
    return cached


def prefilled(session: Session, messages: list[dict[str, Any]], **settings: Any) -> tuple[mx.array, list[int], int]:
    """Logits after the prompt of a turn, its ids, and how many of them were there already."""
    with session._start(messages, ChatSettings(**{**settings, "max_new_tokens": 1})) as stream:
        result = stream.result()
    sequence = stream._sequence
    assert sequence is not None
    return sequence._logits, list(sequence.ids), result.usage.cached_tokens


def test_ten_turns_with_tools_and_thinking(model: LanguageModel) -> None:
    """A turn of the user prefills the answer before (without its thoughts, which the template drops), the message, and
    the opening of an answer; a tool's result prefills no more than itself."""
    session = model.session()
    asked = {"tools": [SEARCH, ADD], "temperature": 0, "max_new_tokens": 60}
    said = ["Search for velvet cloud.", "What is 12 + 30?", "Hello, I am Ada.", "Count to 7.", "Search for valley."] * 2
    messages: list[dict[str, Any]] = []
    before = 0  # where the conversation ended one turn of the user ago
    for turn, text in enumerate(said):
        messages.append({"role": "user", "content": text})
        thinking = turn % 3 != 0
        previous: list[int] = []
        for step in range(3):
            settings = ChatSettings(**asked, enable_thinking=thinking)
            prompt = Prompt.build(model.tokenizer, messages, settings)
            result = session.chat(messages, **asked, enable_thinking=thinking)
            alone = model.chat(messages, **asked, enable_thinking=thinking)
            assert (result.text, result.thinking, result.tool_calls) == (alone.text, alone.thinking, alone.tool_calls)
            assert result.usage.prompt_tokens == len(prompt.ids) == alone.usage.prompt_tokens
            if step:  # goes on from the answer with its thoughts, token for token
                assert result.usage.cached_tokens > len(previous)
                assert result.usage.prefilled_tokens < 40
            else:
                assert result.usage.cached_tokens == before
                before = prompt.stable
            previous = prompt.ids
            messages.append(result.message)
            if not result.tool_calls:
                break
            messages.append({"role": "tool", "content": "42"})
    assert len(session.turns) > len(said)  # some turns took a step more: a tool was called
    prompts = [usage.prompt_tokens for usage in session.turns]
    assert sum(usage.prefilled_tokens for usage in session.turns) < sum(prompts) / 5
    assert session.turns[0].cached_tokens == 0


ENDINGS: dict[str, dict[str, Any]] = {
    "stop": {},
    "length": {"max_new_tokens": 4},
    "one token": {"max_new_tokens": 1},
    "stop string": {"stop": ["5"]},
    "thoughts cut": {"enable_thinking": True, "thinking_budget": 2},
    "forced call": {"tools": [SEARCH], "tool_choice": "search"},
    "penalized": {"temperature": 0.8, "presence_penalty": 1.0, "seed": 3},
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_cache_holds_what_it_says(model: LanguageModel, ending: str) -> None:
    """Decoding runs a step ahead, so at the end the cache covers the last token, or all but the last."""
    session = model.session()
    result = session.chat(COUNT, **{**PLAIN, **ENDINGS[ending]}, logprobs=0)
    prompt = result.usage.prompt_tokens
    written = [p.token for p in result.logprobs]
    ids = held(session)
    if result.finish_reason == "length":
        assert ids[prompt:] == written[:-1]
    elif ending == "stop":
        assert ids[prompt:] == [*written, model.tokenizer.token_id("<|im_end|>")]
    else:
        assert ids[prompt : prompt + len(written)] == written
    assert session._prefix.cache.offset == len(ids)
    more = [*ids, *model.tokenizer.encode("\n<|im_start|>user\n")]
    assert session._prefix.resume(more, len(more)) == len(ids)
    cache = session._prefix.cache.copy()
    assert_equal_to_fresh(model, model.forward([more[len(ids) :]], cache)[:, -1], more)


@pytest.mark.parametrize("events", [0, 1, 4])
def test_an_interrupted_turn_is_usable(model: LanguageModel, events: int) -> None:
    session = model.session()
    stream = session.chat_stream(COUNT, **PLAIN)
    shown = "".join(next(stream).text for _ in range(events))
    stream.close()
    result = stream.result()
    assert (result.finish_reason, result.text) == ("interrupted", shown)
    assert session.turns == [result.usage]
    messages = [*COUNT, result.message, {"role": "user", "content": "Go on."}]
    cached = next_turn(model, session, messages, **PLAIN)
    assert (cached > 0) == (events > 0)


def test_a_new_turn_ends_the_one_before(model: LanguageModel) -> None:
    session = model.session()
    first = session.chat_stream(COUNT, **PLAIN)
    next(first)
    second = session.chat(COUNT, **PLAIN)
    assert second.text == "1 2 3 4 5 6 7"
    assert first.result().finish_reason == "interrupted"
    assert list(first) == []


def test_an_exception_inside_a_step_leaves_the_marks(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the graph is built: some layers have advanced, others have not."""
    session = model.session()
    stream = session.chat_stream(COUNT, **PLAIN)
    next(stream)
    layers, states = model.network.layers, session._prefix.cache.layers

    def half(*_: object, **__: object) -> mx.array:
        window_states = states[:3]
        for layer, state in zip(layers, window_states, strict=False):
            assert layer is not None
            for name, value in vars(state).items():
                setattr(state, name, mx.zeros_like(value))
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.network), "decode", half)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    monkeypatch.undo()
    messages = [*COUNT, stream.result().message, {"role": "user", "content": "Go on."}]
    assert next_turn(model, session, messages, **PLAIN) > 0


def test_random_histories_make_no_difference(model: LanguageModel) -> None:
    """Turns appended, edited, dropped and regenerated, with and without thinking and tools."""
    rng = random.Random(7)
    words = ["Count to 7.", "Hello, I am Ada.", "What is 2 + 3?", "é 🦙 <b>", "Search for tea."]
    session = model.session()
    messages: list[dict[str, Any]] = []
    reused = 0
    for _ in range(30):
        action = rng.choice(["append", "append", "append", "regenerate", "edit", "drop"])
        if action == "edit" and messages:
            messages = [*messages[: rng.randrange(len(messages)) // 2 * 2]]
        if action == "drop":
            messages = messages[-4:]
        if action != "regenerate" or not messages or messages[-1]["role"] != "user":
            messages = [*messages, {"role": "user", "content": rng.choice(words)}]
        settings: dict[str, Any] = {
            "temperature": 0,
            "enable_thinking": rng.random() < 0.5,
            "max_new_tokens": rng.randrange(1, 12),
            "tools": [SEARCH] if rng.random() < 0.2 else None,
        }
        reused += next_turn(model, session, messages, **settings) > 0
        result = session.chat(messages, **settings)
        assert result.usage.cached_tokens + result.usage.prefilled_tokens == result.usage.prompt_tokens
        messages = [*messages, result.message]
    assert reused >= 10


def test_marks_share_their_keys_and_values(model: LanguageModel) -> None:
    session = model.session()
    session.chat(COUNT, **PLAIN)
    marks = len(session._prefix._marks)
    assert marks == 3
    states = sum(a.nbytes for layer in session._prefix.cache.layers for a in layer.arrays())
    cache = session._prefix.cache
    rows = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if hasattr(layer, "keys"))
    assert session.nbytes == rows + marks * (states - rows)  # the newest mark's states are the cache's
    session.reset()
    assert session.nbytes == 0
    assert session.turns == []


def test_a_mark_covers_what_the_cache_covers(model: LanguageModel) -> None:
    prefix = PrefixCache(model.config.text)
    with pytest.raises(ValueError, match="ids: expected the 0 that the cache covers, found 2"):
        prefix.mark([1, 2])


def test_the_lasting_mark_survives_a_long_chain_of_calls(model: LanguageModel) -> None:
    """Six steps of tool use leave many marks; the next message of the user still goes on from the first one."""
    session = model.session()
    asked = {"tools": [SEARCH], "temperature": 0, "max_new_tokens": 40, "tool_choice": "search"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Search for tea."}]
    start = Prompt.build(model.tokenizer, messages, ChatSettings(**asked)).stable
    for step in range(6):
        result = session.chat(messages, **asked)
        arguments = json.dumps({"query": f"tea {step}"})
        call = {"type": "function", "function": {"name": "search", "arguments": arguments}}
        messages += [
            {"role": "assistant", "content": "", "reasoning_content": result.thinking, "tool_calls": [call]},
            {"role": "tool", "content": f"page {step}"},
        ]
    messages += [{"role": "assistant", "content": "Tea."}, {"role": "user", "content": "Thanks."}]
    assert next_turn(model, session, messages, **asked) == start


RULES = {"role": "system", "content": "You are helpful, and you answer in one line. " * 20}


def ask(question: str) -> list[dict[str, Any]]:
    return [RULES, {"role": "user", "content": question}]


@pytest.mark.parametrize("tools", [None, [SEARCH, ADD]])
def test_another_conversation_keeps_system_message_and_tools(model: LanguageModel, tools: Any) -> None:
    """Whatever came in between: ten turns of the first one, and an edit of its first message."""
    session = model.session()
    asked: dict[str, Any] = {**PLAIN, "tools": tools, "max_new_tokens": 8}
    messages = ask("Hello, I am Ada.")
    head = Prompt.build(model.tokenizer, messages, ChatSettings(**asked)).head()
    assert session.chat(messages, **asked).usage.cached_tokens == 0
    for question in ("What is 12 + 30?", "", "?", "Count to 7."):
        cached = next_turn(model, session, ask(question), **asked)
        assert head - 16 - 64 < cached <= head - 16
        assert cached % 64 == 0
    for _ in range(10):
        messages = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
        session.chat(messages, **asked)
    assert next_turn(model, session, ask("Search for tea."), **asked) == cached
    assert next_turn(model, session, [{"role": "system", "content": "Be brief."}, *COUNT], **asked) == 0


@pytest.mark.parametrize("question", ["", "Count to 7.", "word " * 40])
def test_what_is_kept_of_another_conversation_changes_no_bit(model: LanguageModel, question: str) -> None:
    asked: dict[str, Any] = {**PLAIN, "tools": [ADD]}
    logits = []
    for first in ([], ask("Hello, I am Ada.")):
        session = model.session()
        if first:
            session.chat(first, **asked)
        found, _, cached = prefilled(session, ask(question), **asked)
        assert (cached > 0) == bool(first)
        logits.append(found)
    assert mx.array_equal(*logits).item()


def test_a_conversation_without_system_message_keeps_nothing(model: LanguageModel) -> None:
    session = model.session()
    session.chat(COUNT, **PLAIN)
    assert next_turn(model, session, [{"role": "user", "content": "Hello."}], **PLAIN) == 0
