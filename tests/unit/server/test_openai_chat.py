"""Chat completions: the library's answers in OpenAI's form, whole and in chunks; what is wrong, by its field."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_delta import load_model
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.app import create_app
from support.serving import QUESTION, frames

COUNT = [{"role": "user", "content": "Count to 7."}]
PATH = "/v1/chat/completions"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(PATH, json={"messages": COUNT, "temperature": 0, "max_tokens": 40, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def chunks(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    response = client.post(PATH, json={"messages": COUNT, "temperature": 0, "max_tokens": 40, "stream": True, **body})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = frames(response.text.splitlines())
    assert found[-1] == (None, "[DONE]")
    return [data for _, data in found[:-1]]


def joined(found: list[dict[str, Any]], field: str, index: int = 0) -> str:
    deltas = [choice["delta"] for chunk in found for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta.get(field) or "" for delta in deltas)


def test_the_model_is_listed(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"]) == ("tiny", "model")
    assert client.get("/v1/models/tiny").json() == listed
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("thinking", [True, False])
def test_answers_are_those_of_the_library(client: TestClient, model: LanguageModel, thinking: bool) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "seed": 11, "logprobs": 2}
    expected = model.chat(COUNT, max_new_tokens=60, enable_thinking=thinking, **options)
    body = {"temperature": 0.9, "seed": 11, "logprobs": True, "top_logprobs": 2, "max_tokens": 60}
    body["chat_template_kwargs"] = {"enable_thinking": thinking}
    whole = ask(client, **body, model="any name")
    (choice,) = whole["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["message"].get("reasoning_content", "") == choice["message"].get("reasoning", "") == expected.thinking
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [each.logprob for each in expected.logprobs]
    assert whole["usage"]["completion_tokens"] == expected.num_tokens
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == expected.usage.thinking_tokens
    assert (bool(expected.thinking), whole["model"]) == (thinking, "any name")

    streamed = chunks(client, **body, stream_options={"include_usage": True})
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert joined(streamed, "content") == expected.text
    assert joined(streamed, "reasoning_content") == joined(streamed, "reasoning") == expected.thinking
    logprobs = [choice["logprobs"] for chunk in streamed for choice in chunk["choices"] if choice["logprobs"]]
    assert [e for each in logprobs for e in each["content"]] == choice["logprobs"]["content"]
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert [
        chunk["choices"][0]["finish_reason"] for chunk in streamed[:-1] if chunk["choices"][0]["finish_reason"]
    ] == [expected.finish_reason]


def test_under_load_they_stay_so(client: TestClient, model: LanguageModel) -> None:
    def one(seed: int) -> tuple[str, str]:
        body = {"temperature": 1.0, "seed": seed, "max_tokens": 16}
        message = ask(client, **body)["choices"][0]["message"]
        return message.get("reasoning", ""), message["content"]

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(one, range(10)))
    alone = [model.chat(COUNT, temperature=1.0, seed=seed, max_new_tokens=16) for seed in range(10)]
    assert found == [(result.thinking, result.text) for result in alone]


def test_tool_calls_and_their_results(client: TestClient, model: LanguageModel) -> None:
    body = {
        "messages": QUESTION["messages"],
        "tools": QUESTION["tools"],
        "enable_thinking": QUESTION["enable_thinking"],
    }
    expected = model.chat(**body, temperature=0, max_new_tokens=40).tool_calls
    assert expected
    choice = ask(client, **body)["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [
        (call.name, call.arguments) for call in expected
    ]
    deltas = [c for chunk in chunks(client, **body) for c in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [delta["index"] for delta in deltas] == [i for i in range(len(expected)) for _ in range(2)]
    assert all(delta["id"].startswith("call_") for delta in deltas[::2])
    assert [json.loads(delta["function"]["arguments"]) for delta in deltas[1::2]] == [c.arguments for c in expected]

    result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": [{"type": "text", "text": "72"}]}
    turn = [*QUESTION["messages"], choice["message"], result]
    answer = ask(client, **{**body, "messages": turn})["choices"][0]
    assert (
        answer["message"]["content"] == model.chat(**{**body, "messages": turn}, temperature=0, max_new_tokens=40).text
    )


def test_tools_may_be_forced_forbidden_or_called_once(client: TestClient) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    forced = {"type": "function", "function": {"name": "get_weather"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [forced]}}
    for choice, several in ((forced, True), (forced, False), (allowed, False)):
        body = {"tools": [WEATHER, other], "tool_choice": choice, "enable_thinking": False}
        found = ask(client, **body, parallel_tool_calls=several)["choices"][0]
        assert found["finish_reason"] == "tool_calls"
        assert {call["function"]["name"] for call in found["message"]["tool_calls"]} == {"get_weather"}
    free = ask(client, tools=[WEATHER], tool_choice="none", enable_thinking=False)["choices"][0]
    assert (free["finish_reason"], "tool_calls" in free["message"]) == ("stop", False)


def test_an_answer_may_be_a_document(client: TestClient) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    found = ask(client, response_format=form, enable_thinking=False)["choices"][0]["message"]["content"]
    assert json.loads(found).keys() == {"n"}


def test_choices_stops_and_lengths(client: TestClient, model: LanguageModel) -> None:
    found = ask(client, n=3, seed=5, temperature=1.0, max_tokens=20)
    expected = [model.chat(COUNT, seed=5 + i, temperature=1.0, max_new_tokens=20) for i in range(3)]
    messages = [(c["message"].get("reasoning", ""), c["message"]["content"]) for c in found["choices"]]
    assert messages == [(result.thinking, result.text) for result in expected]
    assert found["usage"]["completion_tokens"] == sum(result.num_tokens for result in expected)
    streamed = chunks(client, n=2, seed=5, temperature=1.0, max_tokens=20)
    assert [(joined(streamed, "reasoning", i), joined(streamed, "content", i)) for i in range(2)] == messages[:2]
    cut = ask(client, stop=["6", "never"], enable_thinking=False, max_completion_tokens=3)["choices"][0]
    assert cut["finish_reason"] == "length"
    stopped = ask(client, stop="6", reasoning_effort="none")["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("1 2 3 4 5 ", "stop")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "/etc/passwd"}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, None),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages[0].content"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [1]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"n": 1000}, "n"),
        ({"seed": 10**40}, "seed"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [WEATHER], "tool_choice": "unknown"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}}}, "response_format"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, wrong: dict[str, Any], param: str | None) -> None:
    content = json.dumps({"messages": COUNT, "max_tokens": 4, **wrong})
    response = client.post(PATH, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert error["message"].startswith(param)


def test_numbers_may_be_as_large_as_their_types(client: TestClient) -> None:
    huge = ask(client, top_k=10**18, max_tokens=10**30, thinking_budget=10**30)
    usual = ask(client)
    assert huge["choices"] == usual["choices"]
    seeds = [2**64 - 1, 0]  # the second choice's comes after the last that there is
    two = ask(client, temperature=2, n=2, seed=seeds[0])["choices"]
    alone = [ask(client, temperature=2, seed=seed)["choices"][0]["message"] for seed in seeds]
    assert [each["message"] for each in two] == alone


def test_what_is_no_request(client: TestClient) -> None:
    for content in (b"", b"{", b"[" * 100_000, b'{"messages": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"null", b"[]"):
        response = client.post(PATH, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error"), content[:20]
    response = client.post(PATH, content=json.dumps({"messages": COUNT}), headers={"content-type": "text/plain"})
    assert "application/json" in response.json()["error"]["message"]
    assert client.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get(PATH).status_code == 405


def test_too_long_a_prompt_is_told_as_such(client: TestClient) -> None:
    response = client.post(PATH, json={"messages": [{"role": "user", "content": "1 2 3 4 " * 3000}]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_drafts_change_no_answer_and_are_told(client: TestClient, tiny: Path) -> None:
    """Through a server that speculates: the same text, and counts in usage and in /metrics."""
    body = {"messages": COUNT, "temperature": 0, "max_tokens": 60}
    app = create_app(load_model(tiny, prefix_cache_bytes=0), name="tiny", speculate="3")
    with TestClient(app, base_url="http://127.0.0.1") as drafting:
        found = ask(drafting, **body)
        assert found["choices"] == ask(client, **body)["choices"]
        details = found["usage"]["completion_tokens_details"]
        prompt = {"prompt": [5, 6, 7, 8] * 4, "temperature": 0, "max_tokens": 24}
        texts = [each.post("/v1/completions", json=prompt).json() for each in (drafting, client)]
        assert texts[0]["choices"] == texts[1]["choices"]
        more = texts[0]["usage"]["completion_tokens_details"]
        assert "accepted_prediction_tokens" not in texts[1]["usage"]["completion_tokens_details"]
        told = drafting.get("/metrics").text
    for outcome in ("accepted", "rejected"):
        count = details[f"{outcome}_prediction_tokens"] + more[f"{outcome}_prediction_tokens"]
        assert f'mlx_delta_drafted_tokens_total{{outcome="{outcome}"}} {count:.1f}\n' in told
    assert details["accepted_prediction_tokens"] > 0
