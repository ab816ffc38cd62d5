"""Anthropic's messages: the library's answers as blocks, whole and as events; blocks in, as templates know them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_delta.language_model import LanguageModel
from mlx_delta.server.anthropic_models import CountRequest
from mlx_delta.server.anthropic_question import question
from support.serving import QUESTION, frames

PATH = "/v1/messages"
COUNT = [{"role": "user", "content": "Count to 7."}]
TOOLS = [
    {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
    for f in (tool["function"] for tool in QUESTION["tools"])
]


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    """The message, and the same one put together from the events of a stream."""
    asked = {"messages": COUNT, "max_tokens": 40, "temperature": 0, "model": "claude", **body}
    whole = client.post(PATH, json=asked)
    assert whole.status_code == 200, whole.text
    message: dict[str, Any] = whole.json()
    stream = client.post(PATH, json={**asked, "stream": True})
    assert without_ids(assembled(frames(stream.text.splitlines()))) == without_ids(message)
    return message


def assembled(events: list[tuple[str | None, Any]]) -> dict[str, Any]:
    """As Anthropic's SDKs do it."""
    assert all(name == data["type"] for name, data in events)
    message: dict[str, Any] = events[0][1]["message"]
    assert (events[0][0], events[-1][0]) == ("message_start", "message_stop")
    open_block = None
    for name, data in events[1:-1]:
        if name == "content_block_start":
            assert open_block is None
            open_block = data["index"]
            assert open_block == len(message["content"])
            message["content"].append({**data["content_block"], "json": ""})
        elif name == "content_block_delta":
            assert data["index"] == open_block
            block, delta = message["content"][-1], data["delta"]
            field = {"input_json_delta": "json"}.get(delta["type"], delta["type"].removesuffix("_delta"))
            block[field] += delta["partial_json"] if field == "json" else delta[field]
        elif name == "content_block_stop":
            assert data["index"] == open_block
            open_block = None
            text = message["content"][-1].pop("json")
            if text:
                message["content"][-1]["input"] = json.loads(text)
        else:
            assert name == "message_delta"
            message |= {**data["delta"], "usage": data["usage"]}
    assert open_block is None
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    usage = message["usage"]  # the second time more of it is kept
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return {**message, "id": None, "content": blocks, "usage": (read, usage["output_tokens"])}


def test_answers_are_those_of_the_library(client: TestClient, model: LanguageModel) -> None:
    plain = ask(client, stop_sequences=["never"])
    expected = model.chat(COUNT, temperature=0, enable_thinking=False)
    assert plain["content"] == [{"type": "text", "text": expected.text}]
    assert (plain["stop_reason"], plain["stop_sequence"], plain["model"]) == ("end_turn", None, "claude")
    assert plain["usage"]["input_tokens"] + plain["usage"]["cache_read_input_tokens"] == expected.usage.prompt_tokens
    assert plain["usage"]["output_tokens"] == expected.num_tokens
    thoughtful = ask(client, thinking={"type": "enabled", "budget_tokens": 1024})
    expected = model.chat(COUNT, temperature=0, enable_thinking=True)
    assert [block["type"] for block in thoughtful["content"]] == ["thinking", "text"]
    assert thoughtful["content"][0]["thinking"] == expected.thinking
    assert thoughtful["content"][0]["signature"]
    assert thoughtful["content"][1]["text"] == expected.text
    stopped = ask(client, stop_sequences=["9", "6"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "6")
    assert ask(client, max_tokens=2)["stop_reason"] == "max_tokens"


def test_tools(client: TestClient, model: LanguageModel) -> None:
    messages = [message for message in QUESTION["messages"] if message["role"] != "system"]
    system = [{"type": "text", "text": m["content"]} for m in QUESTION["messages"] if m["role"] == "system"]
    elsewhere = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    body = {"messages": messages, "tools": [*TOOLS, elsewhere], **({"system": system} if system else {})}
    expected = model.chat(
        QUESTION["messages"], tools=QUESTION["tools"], temperature=0, enable_thinking=False, max_new_tokens=40
    )
    answer = ask(client, **body)
    assert answer["stop_reason"] == "tool_use"
    calls = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert [(call["name"], call["input"]) for call in calls] == [(c.name, c.arguments) for c in expected.tool_calls]
    assert client.post(f"{PATH}/count_tokens", json=body).json() == {"input_tokens": expected.usage.prompt_tokens}
    choice = {"type": "tool", "name": TOOLS[0]["name"], "disable_parallel_tool_use": True}
    forced = ask(client, **body, tool_choice=choice)
    assert [block["name"] for block in forced["content"] if block["type"] == "tool_use"] == [TOOLS[0]["name"]]
    assert forced["stop_reason"] == "tool_use"


def test_blocks_become_messages() -> None:
    png = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    body = {
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc=1"},
            {"type": "text", "text": "a"},
            {"text": "b"},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "redacted_thinking", "data": "?"},
                    {"type": "text", "text": "x"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "1",
                        "content": [{"type": "text", "text": "r"}],
                        "is_error": True,
                    },
                    {"type": "tool_result", "tool_use_id": "2"},
                    {"type": "image", "source": png},
                ],
            },
        ],
    }
    found = question(CountRequest.model_validate(body))
    assert found.options == {"enable_thinking": False, "tools": [], "tool_choice": None}
    assert found.messages == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {
            "role": "assistant",
            "content": "x",
            "reasoning_content": "t",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
        {"role": "tool", "tool_call_id": "2", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
    ]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"messages": []}, "messages: "),
        ({"max_tokens": "9"}, "max_tokens: "),
        (said([{"type": "image", "source": {"type": "url", "url": "x"}}]), "nothing is fetched"),
        (said([{"type": "file"}]), "messages[0].content[0].type: "),
        (said([{"type": "text"}]), "messages[0].content[0].text: "),
        ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: expected tools to choose from"),
        (said("1 2 3 4 " * 3000), "prompt is too long: 24011 tokens > 8192 maximum"),
    ],
)
def test_what_is_wrong_is_told_in_anthropics_form(client: TestClient, wrong: dict[str, Any], named: str) -> None:
    response = client.post(PATH, json={"messages": COUNT, "max_tokens": 4, **wrong})
    assert (response.status_code, response.json()["type"]) == (400, "error")
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
