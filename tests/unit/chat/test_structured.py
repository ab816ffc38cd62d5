"""Answers that follow a JSON schema: with and without thoughts, tools, batches; against a reference of our own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_delta import ChatSettings, create_tool_definition, load_model
from mlx_delta.errors import MissingPackageError
from mlx_delta.language_model import LanguageModel
from mlx_delta.text.grammar import JsonGrammar

HELLO = [{"role": "user", "content": "Hello, I am Ada."}]
COUNT = [{"role": "user", "content": "Count to 7."}]
FIND = [{"role": "user", "content": "Search for velvet cloud."}]
SEARCH = create_tool_definition("search", "Search the web", {"query": {"type": "string"}}, ["query"])
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"enum": ["c", "f", None]},
    },
    "required": ["name", "n", "unit"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 200}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


def check(text: str) -> None:
    document = json.loads(text)
    assert list(document) == ["name", "n", "unit"]
    assert isinstance(document["name"], str)
    assert len(document["name"]) <= 12
    assert 0 <= document["n"] <= 99
    assert document["unit"] in ("c", "f", None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thinking", [True, False])
def test_documents_follow_their_schema(model: LanguageModel, seed: int, thinking: bool) -> None:
    """At a temperature where all that is allowed is likely; the default penalties weigh on what JSON repeats."""
    settings = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "seed": seed, "max_new_tokens": 400}
    result = model.chat(HELLO, **settings, json_schema=SCHEMA, enable_thinking=thinking, thinking_budget=20)
    check(result.text)
    assert result.finish_reason == "stop"
    assert bool(result.thinking) == thinking


@pytest.mark.parametrize("budget", [None, 0, 3])
def test_thoughts_stay_free(model: LanguageModel, budget: int | None) -> None:
    free = model.chat(HELLO, **GREEDY, thinking_budget=budget)
    bound = model.chat(HELLO, **GREEDY, thinking_budget=budget, json_schema=SCHEMA)
    assert bound.thinking == free.thinking
    check(bound.text)


def test_against_prefixes_of_the_documents(model: LanguageModel) -> None:
    """A schema with four documents: greedy decoding over the tokens that continue one of them, worked out by hand."""
    documents = [json.dumps(text).encode() for text in ("velvet", "vel", "cloud", "Ada é")]
    result = model.chat(
        HELLO, **GREEDY, enable_thinking=False, json_schema={"enum": [json.loads(d) for d in documents]}
    )
    ids = model.tokenizer.encode(model.render_chat(HELLO, enable_thinking=False))
    written = b""
    while written not in documents:
        allowed = [
            token
            for token in range(model.tokenizer.vocab_size)
            if (piece := model.tokenizer.token_bytes(token)) and any(d.startswith(written + piece) for d in documents)
        ]
        logits = model.forward([ids])[0, -1]
        ids.append(max(allowed, key=lambda token: logits[token].item()))
        written += model.tokenizer.token_bytes(ids[-1])
    assert result.text.encode() == written


def test_tags_in_a_document_are_text(model: LanguageModel) -> None:
    value = "<tool_call>\n<function=f> <think>é</think> <|im_end|>"
    result = model.chat(HELLO, **GREEDY, enable_thinking=False, json_schema={"const": value})
    assert json.loads(result.text) == value
    assert not result.warnings
    assert not result.tool_calls


def test_tools_or_a_document(model: LanguageModel) -> None:
    asked = {**GREEDY, "json_schema": SCHEMA, "tools": [SEARCH], "enable_thinking": False}
    called = model.chat(FIND, **asked)
    assert [call.name for call in called.tool_calls] == ["search"]
    assert not called.text
    assert called.finish_reason == "tool_calls"
    wild = {"tools": [SEARCH], "temperature": 60.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 40}
    texts = [
        model.chat(COUNT, **wild, seed=seed, json_schema={"const": "x"}, enable_thinking=False).text
        for seed in range(12)
    ]
    assert any(text == '"x"' for text in texts)
    assert all(text in ("", '"x"') or text.startswith("<tool_call>") for text in texts)
    assert any(text != '"x"' for text in texts)
    refused = model.chat(FIND, **asked, tool_choice="none")
    check(refused.text)
    assert not refused.tool_calls
    for choice in ("required", "search"):
        forced = model.chat(FIND, **asked, tool_choice=choice)
        assert [call.name for call in forced.tool_calls] == ["search"]
        assert not forced.text
    thoughtful = model.chat(FIND, **{**asked, "enable_thinking": True})
    assert thoughtful.tool_calls
    assert thoughtful.thinking == "I should call search."


@pytest.mark.parametrize("seed", range(8))
def test_after_a_call_only_calls(model: LanguageModel, seed: int) -> None:
    result = model.chat(FIND, temperature=1.5, seed=seed, tools=[SEARCH], json_schema=SCHEMA, max_new_tokens=120)
    if result.warnings:  # a call that broke its own grammar is text
        assert result.text.startswith("<tool_call>")
    elif result.tool_calls:
        assert not result.text
    else:
        check(result.text)


def test_a_batch_is_its_rows(model: LanguageModel) -> None:
    rows = [
        ChatSettings(**GREEDY, json_schema=SCHEMA, enable_thinking=False),
        ChatSettings(**GREEDY, json_schema={"enum": ["velvet", "cloud"]}),
        ChatSettings(**GREEDY),
        ChatSettings(temperature=2.0, seed=4, json_schema=SCHEMA, max_new_tokens=120, thinking_budget=5),
    ]
    for settings, result in zip(rows, model.chat_batch([HELLO] * 4, rows), strict=True):
        alone = model.chat(HELLO, **settings.options)
        assert (result.text, result.thinking, result.num_tokens) == (alone.text, alone.thinking, alone.num_tokens)
        events = list(model.chat_stream(HELLO, **settings.options))
        assert "".join(event.text for event in events) == alone.text


def test_a_session_goes_on_after_a_document(model: LanguageModel) -> None:
    session = model.session()
    first = session.chat(HELLO, **GREEDY, json_schema=SCHEMA)
    messages = [*HELLO, first.message, {"role": "user", "content": "Count to 7."}]
    second = session.chat(messages, **GREEDY)
    assert second.usage.cached_tokens > 0
    assert second.text == model.chat(messages, **GREEDY).text


def test_length_and_stop(model: LanguageModel) -> None:
    whole = model.chat(HELLO, **GREEDY, json_schema={"enum": ["velvet cloud"]}, enable_thinking=False)
    assert whole.text == '"velvet cloud"'
    cut = model.chat(
        HELLO, temperature=0, max_new_tokens=2, json_schema={"enum": ["velvet cloud"]}, enable_thinking=False
    )
    assert cut.finish_reason == "length"
    assert whole.text.startswith(cut.text)
    stopped = model.chat(HELLO, **GREEDY, json_schema={"enum": ["velvet cloud"]}, enable_thinking=False, stop=["t c"])
    assert (stopped.text, stopped.finish_reason) == ('"velve', "stop")


def test_response_formats() -> None:
    inner = {"name": "x", "schema": SCHEMA, "strict": True}
    assert ChatSettings(response_format={"type": "json_schema", "json_schema": inner}).schema == SCHEMA
    assert ChatSettings(response_format={"type": "json_object", "schema": SCHEMA}).schema == SCHEMA
    assert ChatSettings(response_format={"type": "json_object"}).schema == {"type": "object"}
    assert ChatSettings(response_format={"type": "text"}).schema is None
    assert ChatSettings(json_schema=SCHEMA).schema == SCHEMA
    assert ChatSettings().schema is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"response_format": {"type": "xml"}},
            "response_format: expected type text, json_object or json_schema, found",
        ),
        ({"response_format": "json"}, "response_format: expected a mapping, found 'json'"),
        ({"response_format": {"type": "json_schema"}}, "response_format: expected a schema, an object, in json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "response_format: expected a schema, an object, in json_schema, found 3",
        ),
        (
            {"response_format": {"type": "text"}, "json_schema": {}},
            "response_format: expected json_schema or response_format, found both",
        ),
        (
            {"json_schema": {"type": "strin"}},
            "json_schema: expected a schema that llguidance can follow, found: Invalid",
        ),
        (
            {"json_schema": {"type": "array", "uniqueItems": True}},
            r"json_schema: .* Unimplemented keys: \[.uniqueItems.\]",
        ),
        ({"json_schema": {"type": {1}}}, r"json_schema: expected a JSON schema, found \{'type': \{1\}\}"),
    ],
)
def test_wrong_schemas(model: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.chat(HELLO, **arguments)


def test_a_missing_library_names_the_extra(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        MissingPackageError, match=r"llguidance, found it missing: pip install 'mlx-delta\[structured\]'"
    ):
        model.chat(HELLO, json_schema=SCHEMA)
    assert model.chat(HELLO, **GREEDY).text


def test_layout_is_bounded(model: LanguageModel) -> None:
    """A model that is kept from all it would rather say cannot write blanks for ever."""
    for text, fits in (('{\n  "n": 1\n}', True), ('{"n":1}', True), ('{\n\n"n": 1}', False), ('{    "n": 1}', False)):
        grammar = JsonGrammar(model.tokenizer, {"type": "object", "properties": {"n": {"type": "integer"}}})
        single = {model.tokenizer.token_bytes(i): i for i in range(256)}
        allowed = True
        for byte in text.encode():
            token = single[bytes([byte])]
            allowed = allowed and bool(grammar.allowed()[token])
            if allowed:
                grammar.push(token)
        assert allowed == fits, text
