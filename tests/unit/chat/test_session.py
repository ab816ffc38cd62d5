"""Sessions: what is computed again and what is not, and that it makes no difference to the answer, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta import create_tool_definition, load_model
from mlx_delta.chat.request import ChatSettings, Prompt
from mlx_delta.chat.session import Session
from mlx_delta.engine.cuts import Cuts
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache

COUNT = [{"role": "user", "content": "Count to 7."}]
PLAIN: dict[str, Any] = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 60}
SEARCH = create_tool_definition("search", "Search the web", {"query": {"type": "string"}}, ["query"])
ADD = create_tool_definition("add", "Add", {"a": {"type": "integer"}, "b": {"type": "integer"}}, ["a", "b"])


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture
def model(loaded: LanguageModel) -> Iterator[LanguageModel]:
    """One that has kept nothing."""
    loaded.engine.prefix.clear()
    yield loaded
    assert loaded.engine.prefix.nbytes <= loaded.engine.prefix.limit


@pytest.fixture(scope="module")
def fresh(loaded: LanguageModel) -> LanguageModel:
    """The same one, which keeps nothing."""
    return LanguageModel(loaded.path, loaded.config, loaded.network, loaded.tokenizer, prefix_cache_bytes=0)


def resumed(model: LanguageModel, ids: list[int]) -> Cache:
    return model.engine.prefix.resume(ids, Cuts(ids, model.engine.turns))


def turns_of(model: LanguageModel, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    """Where the turns of a prompt begin."""
    ids = Prompt.build(model.tokenizer, messages, ChatSettings(**settings)).ids
    return Cuts(ids, model.engine.turns).starts


def next_turn(model: LanguageModel, session: Session, messages: list[dict[str, Any]], **settings: Any) -> int:
    """Prefill the next prompt over what is kept, with the logits of a model that keeps nothing: how many were there."""
    with session._start(messages, ChatSettings(**{**settings, "max_new_tokens": 1})) as stream:
        result = stream.result()
    assert stream._sequence is not None
    nothing = LanguageModel(model.path, model.config, model.network, model.tokenizer, prefix_cache_bytes=0)
    with nothing.chat_stream(messages, **{**settings, "max_new_tokens": 1}) as alone:
        assert alone.result().usage.cached_tokens == 0
    assert alone._sequence is not None
    assert mx.array_equal(stream._sequence._logits, alone._sequence._logits).item()
    return result.usage.cached_tokens


def test_ten_turns_with_tools_and_thinking(model: LanguageModel, fresh: LanguageModel) -> None:
    """A turn of the user prefills the answer before (without its thoughts, which the template drops), the message, and
    the opening of an answer; a tool's result prefills no more than itself."""
    session = model.session()
    asked = {"tools": [SEARCH, ADD], "temperature": 0, "max_new_tokens": 60, "logprobs": 1}
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
            alone = fresh.chat(messages, **asked, enable_thinking=thinking)
            assert (result.text, result.thinking, result.logprobs) == (alone.text, alone.thinking, alone.logprobs)
            assert result.usage.prompt_tokens == len(prompt.ids) == alone.usage.prefilled_tokens
            if step:  # goes on from the answer with its thoughts, token for token
                assert result.usage.cached_tokens > len(previous)
                assert result.usage.prefilled_tokens < 40
            else:
                assert result.usage.cached_tokens == before
                before = turns_of(model, messages, **asked, enable_thinking=thinking)[-1]
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
    ids = Prompt.build(model.tokenizer, COUNT, ChatSettings(**{**PLAIN, **ENDINGS[ending]})).ids
    opened = ids.index(model.engine.turns.start or 0, 1)
    more = [*ids, *written, *model.tokenizer.encode("<|im_end|>\n<|im_start|>user\n")]
    cache = resumed(model, more)
    if result.finish_reason == "length":
        assert cache.offset == prompt + len(written) - 1
    else:
        assert cache.offset >= prompt + len(written)
    last = model.network(mx.array([more[cache.offset : cache.offset + 1]]), cache)
    alone = model.make_cache()
    model.network(mx.array([more[:opened]]), alone)
    for token in more[alone.offset : cache.offset]:
        found = model.network(mx.array([[token]]), alone)
    assert mx.array_equal(last, found).item()


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
    assert stream._sequence is not None
    layers, states = model.network.layers, stream._sequence.cache.layers

    def half(*_: object, **__: object) -> mx.array:
        window_states = states[:3]
        for layer, state in zip(layers, window_states, strict=False):
            assert layer is not None
            for name, value in vars(state).items():
                setattr(state, name, mx.zeros_like(value) if isinstance(value, mx.array) else value)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.network), "step", half)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    monkeypatch.undo()
    messages = [*COUNT, stream.result().message, {"role": "user", "content": "Go on."}]
    assert next_turn(model, session, messages, **PLAIN) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_histories_make_no_difference(tiny: Path, dtype: str) -> None:
    """Turns appended, edited, dropped, forked and regenerated, with and without thinking and tools, and little memory:
    the tokens and the likelihoods of a model that keeps nothing."""
    model = load_model(tiny, dtype, prefix_cache_bytes=15_000_000)
    fresh = LanguageModel(model.path, model.config, model.network, model.tokenizer, prefix_cache_bytes=0)
    rng = random.Random(7)
    words = ["Count to 7.", "Hello, I am Ada.", "What is 2 + 3?", "é 🦙 <b>", "Search for tea. " * 30]
    messages: list[dict[str, Any]] = []
    histories: list[list[dict[str, Any]]] = [[]]
    reused = 0
    for _ in range(12):
        action = rng.choice(["append", "append", "append", "regenerate", "edit", "drop", "fork"])
        if action == "edit" and messages:
            messages = messages[: rng.randrange(len(messages)) // 2 * 2]
        if action == "drop":
            messages = messages[-4:]
        if action == "fork":
            messages = rng.choice(histories)
        if action != "regenerate" or not messages or messages[-1]["role"] != "user":
            messages = [*messages, {"role": "user", "content": rng.choice(words)}]
        settings: dict[str, Any] = {
            "temperature": rng.choice([0, 1.2]),
            "seed": rng.randrange(100),
            "enable_thinking": rng.random() < 0.5,
            "max_new_tokens": rng.choice([1, 5, 12, 40]),
            "tools": [SEARCH] if rng.random() < 0.2 else None,
            "logprobs": 3,
        }
        result, alone = model.chat(messages, **settings), fresh.chat(messages, **settings)
        assert result.logprobs == alone.logprobs
        assert result.message == alone.message
        assert result.usage.cached_tokens + result.usage.prefilled_tokens == result.usage.prompt_tokens
        reused += result.usage.cached_tokens > 0
        assert 0 < model.engine.prefix.nbytes <= 15_000_000
        messages = [*messages, result.message]
        histories.append(messages)
    assert reused >= 5


def test_a_session_tells_what_is_kept_of_it_and_forgets_it(model: LanguageModel) -> None:
    session, other = model.session(), model.session()
    assert session.nbytes == 0
    session.chat(COUNT, **PLAIN)
    alone = model.engine.prefix.nbytes
    assert session.nbytes == alone > 0
    other.chat(COUNT, **PLAIN, seed=1)
    assert other.nbytes == session.nbytes == model.engine.prefix.nbytes == alone
    other.chat([{"role": "user", "content": "Hello."}], **PLAIN)
    assert model.engine.prefix.nbytes > alone
    session.reset()
    assert session.nbytes == 0
    assert session.turns == []
    assert model.engine.prefix.nbytes == other.nbytes > 0


def test_the_lasting_mark_survives_a_long_chain_of_calls(model: LanguageModel) -> None:
    """Six steps of tool use leave many marks; the next message of the user still goes on from the first one."""
    session = model.session()
    asked = {"tools": [SEARCH], "temperature": 0, "max_new_tokens": 40, "tool_choice": "search"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Search for tea."}]
    start = turns_of(model, messages, **asked)[-1]
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
    head = turns_of(model, messages, **asked)[1]
    assert session.chat(messages, **asked).usage.cached_tokens == 0
    for question in ("What is 12 + 30?", "", "?", "Count to 7."):
        cached = next_turn(model, session, ask(question), **asked)
        assert cached == head  # where the turn of the question begins
    for _ in range(10):
        messages = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
        session.chat(messages, **asked)
    assert next_turn(model, session, ask("Search for tea."), **asked) == cached
    assert next_turn(model, session, [{"role": "system", "content": "Be brief."}, *COUNT], **asked) == 0


def test_a_conversation_without_system_message_keeps_nothing(model: LanguageModel) -> None:
    session = model.session()
    session.chat(COUNT, **PLAIN)
    assert next_turn(model, session, [{"role": "user", "content": "Hello."}], **PLAIN) == 0
