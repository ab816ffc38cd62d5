"""OpenAI's responses: the library's answers as items, whole and as events; what is kept, and what goes on from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_delta.errors import RequestError
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.responses_question import messages_of
from mlx_delta.server.responses_store import ResponseStore
from support.serving import QUESTION, frames

PATH = "/v1/responses"
COUNT = "Count to 7."
MESSAGES = [{"role": "user", "content": COUNT}]
TOOLS = [{"type": "function", "strict": True, **tool["function"]} for tool in QUESTION["tools"]]
QUICK = {"chat_template_kwargs": {"enable_thinking": False}}


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    """The response, and the same one put together from the events of a stream."""
    asked = {"input": COUNT, "temperature": 0, "max_output_tokens": 40, **body}
    whole = client.post(PATH, json=asked)
    assert whole.status_code == 200, whole.text
    response: dict[str, Any] = whole.json()
    events = frames(client.post(PATH, json={**asked, "stream": True}).text.splitlines())
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    assert [name for name, _ in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1][1]["response"]
    assert events[-1][0] == f"response.{response['status']}"
    assert anonymous(last) == anonymous(response)
    assert anonymous({**last, "output": assembled(events)}) == anonymous(response)
    return response


def assembled(events: list[tuple[str | None, Any]]) -> list[dict[str, Any]]:
    """Items from their deltas, each held against its ``done`` event."""
    items: list[dict[str, Any]] = []
    for name, data in events[2:-1]:
        assert name is not None
        if name == "response.output_item.added":
            assert data["output_index"] == len(items)
            items.append(data["item"])
            continue
        item = items[data["output_index"]]
        assert data.get("item_id", item["id"]) == item["id"]
        if name == "response.content_part.added":
            item["content"].append(data["part"])
        elif name == "response.function_call_arguments.delta":
            item["arguments"] += data["delta"]
        elif name.endswith(".delta"):
            item["content"][data["content_index"]]["text"] += data["delta"]
        elif name == "response.output_item.done":
            item["status"] = "completed"
            assert item == data["item"]
    return items


def anonymous(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = {"id", "call_id", "created_at", "cached_tokens"}  # the second time more is kept
        return {name: anonymous(item) for name, item in value.items() if name not in hidden}
    return [anonymous(item) for item in value] if isinstance(value, list) else value


def test_answers_are_those_of_the_library(client: TestClient, model: LanguageModel) -> None:
    expected = model.chat([{"role": "system", "content": "Be brief."}, *MESSAGES], temperature=0, max_new_tokens=40)
    response = ask(client, instructions="Be brief.")
    reasoning, message = response["output"]
    assert (reasoning["type"], reasoning["content"][0]["text"]) == ("reasoning", expected.thinking)
    assert (message["type"], message["content"][0]["text"]) == ("message", expected.text)
    assert (response["status"], response["instructions"]) == ("completed", "Be brief.")
    assert response["usage"]["output_tokens"] == expected.num_tokens
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == expected.usage.thinking_tokens
    cut = ask(client, max_output_tokens=3, reasoning={"effort": "none"}, store=False)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    document = ask(client, text={"format": form}, **QUICK)
    assert json.loads(document["output"][0]["content"][0]["text"]).keys() == {"n"}


def test_tools_and_a_response_that_goes_on(client: TestClient, model: LanguageModel) -> None:
    options = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 40}
    expected = model.chat(QUESTION["messages"], tools=QUESTION["tools"], **options)
    body = {"input": QUESTION["messages"], "tools": [{"type": "web_search"}, *TOOLS], **QUICK}
    response = ask(client, **body, parallel_tool_calls=False)
    (call,) = response["output"]
    assert (call["type"], call["name"]) == ("function_call", expected.tool_calls[0].name)
    assert json.loads(call["arguments"]) == expected.tool_calls[0].arguments

    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "72"}
    turn = [*QUESTION["messages"], expected.message, {"role": "tool", "content": "72"}]
    answer = model.chat(turn, tools=QUESTION["tools"], **options)
    again = {**body, "input": [*QUESTION["messages"], call, result], "temperature": 0, "max_output_tokens": 40}
    whole = client.post(PATH, json=again).json()
    kept = ask(client, **{**body, "input": [result], "previous_response_id": response["id"]})
    for found in (whole, kept):
        assert found["output"][0]["content"][0]["text"] == answer.text
    assert kept["usage"]["input_tokens"] == answer.usage.prompt_tokens

    assert client.get(f"{PATH}/{kept['id']}").json() == kept
    assert client.delete(f"{PATH}/{kept['id']}").json()["deleted"] is True
    assert client.get(f"{PATH}/{kept['id']}").status_code == 404
    lost = client.post(PATH, json={"input": "x", "previous_response_id": kept["id"]})
    assert (lost.status_code, lost.json()["error"]["code"]) == (400, "previous_response_not_found")


def test_items_of_one_turn_are_one_message() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "s"}]},
        {"type": "message", "role": "user", "content": "q"},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "r"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "u"}], "encrypted_content": "?"},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": "{}"},
    ]
    found = messages_of(items)
    assert [message["role"] for message in found] == ["developer", "user", "assistant", "tool", "assistant"]
    assert (found[2]["reasoning_content"], found[2]["content"]) == ("t", [{"type": "text", "text": "a"}])
    assert [call["function"]["name"] for call in found[2]["tool_calls"]] == ["f", "g"]
    assert (found[4]["reasoning_content"], len(found[4]["tool_calls"])) == ("u", 1)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": 3}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input[0].arguments"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "yaml"}}}, "response_format"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    response = client.post(PATH, json={"input": COUNT, "max_output_tokens": 4, **wrong})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_the_oldest_responses_go_first() -> None:
    store = ResponseStore(count=3, size=400)
    for i in range(4):
        store.keep({"id": str(i)}, [])
    with pytest.raises(RequestError):
        store.get("0")
    store.get("1")  # is the newest now
    store.keep({"id": "large", "text": "x" * 360}, [])
    assert len(store) == 1 + ("1" in store._kept)
    store.drop("large")
    assert store._size == sum(kept.size for kept in store._kept.values())
