"""The official Python SDKs against a server: ``python sdk_python.py http://127.0.0.1:8080``, with openai and anthropic.

One line for each thing that was tried. The model is to be examples/tiny, which knows what is asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import anthropic
import openai

ADDRESS = sys.argv[1].rstrip("/")
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
COUNT: Any = [{"role": "user", "content": "Count to 7."}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
NAME, TOLD = "get_weather", "Tell the weather"
FUNCTION: dict[str, Any] = {"name": NAME, "description": TOLD, "parameters": SCHEMA}
COUNTED = "1 2 3 4 5 6 7"


def oa() -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0)


def an() -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=ADDRESS, api_key=KEY, max_retries=0)


def openai_models() -> None:
    assert [model.id for model in oa().models.list()]


def openai_chat() -> None:
    found = oa().chat.completions.create(model="x", messages=COUNT, temperature=0)
    assert found.choices[0].message.content == COUNTED
    assert found.usage is not None
    assert found.usage.completion_tokens_details is not None
    assert found.usage.completion_tokens_details.reasoning_tokens


def openai_chat_stream() -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(oa().chat.completions.create(model="x", messages=COUNT, temperature=0, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == COUNTED
    assert any(getattr(c.choices[0].delta, "reasoning_content", None) for c in chunks if c.choices)
    assert chunks[-1].usage.total_tokens


def openai_chat_stream_helper() -> None:
    tools: Any = [{"type": "function", "function": FUNCTION | {"strict": True}}]
    with oa().chat.completions.stream(model="x", messages=WEATHER, tools=tools, temperature=0) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert message.tool_calls[0].function.parsed_arguments.keys() == {"location"}


def openai_chat_tools() -> None:
    tools: Any = [{"type": "function", "function": FUNCTION}]
    choice = oa().chat.completions.create(model="x", messages=WEATHER, tools=tools, temperature=0).choices[0]
    assert choice.finish_reason == "tool_calls"
    call: Any = choice.message.tool_calls[0]
    assert json.loads(call.function.arguments).keys() == {"location"}
    turn: Any = [*WEATHER, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert oa().chat.completions.create(model="x", messages=turn, tools=tools, temperature=0).choices[0].message.content


def openai_chat_parse() -> None:
    import pydantic

    class Place(pydantic.BaseModel):
        location: str = pydantic.Field(max_length=20)

    found = oa().chat.completions.parse(model="x", messages=WEATHER, response_format=Place, temperature=0)
    assert isinstance(found.choices[0].message.parsed, Place)


def openai_chat_logprobs_n() -> None:
    found = oa().chat.completions.create(model="x", messages=COUNT, n=2, logprobs=True, top_logprobs=3, max_tokens=8)
    assert len(found.choices) == 2
    assert len(found.choices[1].logprobs.content[0].top_logprobs) == 3


def openai_completions() -> None:
    found = oa().completions.create(model="x", prompt="1 2 3", max_tokens=4, echo=True, logprobs=2, temperature=0)
    assert found.choices[0].text.startswith("1 2 3")
    assert found.choices[0].logprobs.token_logprobs[0] is None
    assert list(oa().completions.create(model="x", prompt=[5, 6], max_tokens=4, stream=True))


def openai_responses() -> None:
    found = oa().responses.create(model="x", input="Count to 7.", temperature=0)
    assert found.output_text == COUNTED
    more = oa().responses.create(model="x", input="Count to 3.", previous_response_id=found.id, temperature=0)
    assert more.usage.input_tokens > found.usage.input_tokens
    assert oa().responses.retrieve(found.id).output_text == COUNTED
    oa().responses.delete(found.id)


def openai_responses_stream() -> None:
    tools: Any = [{"type": "function", **FUNCTION, "strict": True}]
    with oa().responses.stream(model="x", input=WEATHER, tools=tools, temperature=0) as stream:
        events = list(stream)
        final: Any = stream.get_final_response()
    assert events[-1].type == "response.completed"
    assert final.output[-1].parsed_arguments.keys() == {"location"}
    with oa().responses.stream(model="x", input="Count to 7.", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == COUNTED


def openai_errors() -> None:
    try:
        oa().chat.completions.create(model="x", messages=COUNT, temperature=-1)
    except openai.BadRequestError as error:
        assert error.param == "temperature"  # noqa: PT017 - no pytest here
    else:
        raise AssertionError("expected an error")


def anthropic_messages() -> None:
    found = an().messages.create(
        model="x", max_tokens=100, messages=COUNT, system=[{"type": "text", "text": "Be brief."}]
    )
    assert found.content[0].type == "text"
    counted = an().messages.count_tokens(model="x", messages=COUNT, system=[{"type": "text", "text": "Be brief."}])
    assert counted.input_tokens == found.usage.input_tokens + (found.usage.cache_read_input_tokens or 0)


def anthropic_thinking_stream() -> None:
    options: Any = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    with an().messages.stream(model="x", max_tokens=2000, messages=COUNT, **options) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert {"thinking", "text", "content_block_stop", "message_stop"} <= {event.type for event in events}
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].signature
    again: Any = [*COUNT, {"role": "assistant", "content": final.content}, *COUNT]
    assert an().messages.create(model="x", max_tokens=50, messages=again).content


def anthropic_tools() -> None:
    tools: Any = [{"name": NAME, "description": TOLD, "input_schema": SCHEMA}]
    with an().messages.stream(model="x", max_tokens=200, messages=WEATHER, tools=tools) as stream:
        final: Any = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    call = final.content[-1]
    assert call.input.keys() == {"location"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turn: Any = [*WEATHER, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    assert an().messages.create(model="x", max_tokens=50, messages=turn, tools=tools).content


def anthropic_errors() -> None:
    try:
        an().messages.create(model="x", max_tokens=0, messages=COUNT)
    except anthropic.BadRequestError as error:
        assert "max_tokens" in error.message  # noqa: PT017
    else:
        raise AssertionError("expected an error")


def main() -> int:
    tried: list[Callable[[], None]] = [
        value for name, value in globals().items() if name.startswith(("openai_", "anthropic_")) and callable(value)
    ]
    failed = 0
    for each in tried:
        package, _, what = each.__name__.partition("_")
        try:
            each()
            told = "ran"
        except Exception as error:
            failed += 1
            told = f"FAILED: {type(error).__name__}: {error}"
        print(f"{package} {version(package)}: {what.replace('_', ' ')}: {told}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
