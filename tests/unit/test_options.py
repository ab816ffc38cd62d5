"""The arguments of everything that answers: spelled once, checked by name and type, None the default of each."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_delta.chat.settings import ChatSettings, GenerationSettings
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from mlx_delta.options import SAMPLING, ChatOptions, GenerationOptions, checked, option_texts

COUNT = [{"role": "user", "content": "Count to 7."}]
GREEDY: dict[str, Any] = {"temperature": 0, "enable_thinking": False}
NAMES = tuple(ChatOptions.__annotations__)
# A value of a wrong type for each option.
WRONG: dict[str, Any] = {
    "prompt_progress": 3,
    "speculate": 2.5,
    "temperature": "0.7",
    "top_k": 2.5,
    "top_p": "1",
    "min_p": [0.1],
    "presence_penalty": True,
    "repetition_penalty": {},
    "seed": "7",
    "preset": 3,
    "max_new_tokens": "100",
    "stop": 4,
    "tools": {"type": "function"},
    "tool_choice": 1,
    "enable_thinking": "false",
    "thinking_budget": 10.0,
    "logprobs": True,
    "json_schema": "{}",
    "response_format": "json",
    "strict": 1,
    "template_variables": ["x"],
}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def test_every_sampling_parameter_is_an_option() -> None:
    assert {field.name for field in dataclasses.fields(SamplingParams)} == {*SAMPLING, "seed"}


def test_every_option_is_explained_and_shown() -> None:
    assert set(option_texts(ChatOptions)) == set(NAMES)
    assert all(text.endswith(".") for text in option_texts(ChatOptions).values())
    for method in (LanguageModel.chat, LanguageModel.chat_stream, LanguageModel.chat_batch, ChatSettings.__init__):
        assert set(NAMES) < set(inspect.signature(method).parameters)
        assert "\n    top_k: Keep the k likeliest tokens; 0 keeps all.\n" in (method.__doc__ or "")
        assert not any(len(line) > 120 for line in (method.__doc__ or "").splitlines())
    shown = inspect.signature(LanguageModel.generate).parameters
    assert set(GenerationOptions.__annotations__) < set(shown)
    assert "tools" not in shown


def test_none_is_the_default_of_every_argument(model: LanguageModel) -> None:
    nothing: dict[str, Any] = dict.fromkeys(NAMES)
    assert checked(nothing, ChatOptions) == {}
    assert vars(ChatSettings(**nothing)) == vars(ChatSettings())
    assert model.chat(COUNT, **{**nothing, **GREEDY}).text == model.chat(COUNT, **GREEDY).text
    few: dict[str, Any] = dict.fromkeys(GenerationOptions.__annotations__)
    assert model.generate("1 2 3", **{**few, "temperature": 0}).text() == model.generate("1 2 3", temperature=0).text()


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_names_the_argument(model: LanguageModel, name: str) -> None:
    wrong = {name: WRONG[name]}
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found "):
        model.chat_stream(COUNT, **wrong)
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found "):
        model.chat_batch([COUNT], **wrong)
    if name in GenerationOptions.__annotations__:
        with pytest.raises(ValueError, match=f"^{name}: expected .*, found "):
            model.generate("x", **wrong)


@pytest.mark.parametrize(
    ("name", "close"), [("tempature", "temperature"), ("max_tokens", "max_new_tokens"), ("repeat_penalty", "repe")]
)
def test_a_wrong_name_is_told_with_the_right_one(model: LanguageModel, name: str, close: str) -> None:
    for call in (model.chat, model.session().chat_stream, model.chat_batch, model.generate):
        with pytest.raises(TypeError, match=f"^{name}: unexpected argument: did you mean {close}"):
            call(COUNT, **{name: 1})  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"^zzz: unexpected argument; there are temperature, top_k"):
        ChatSettings(**{"zzz": 1})  # type: ignore[misc]


def test_numbers_of_numpy_are_numbers() -> None:
    settings = ChatSettings(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint8(7))  # type: ignore[arg-type]
    assert settings.options == {"temperature": 0.5, "top_k": 3, "seed": 7}
    assert all(type(value) in (int, float) for value in settings.options.values())


def test_functions_are_tools(model: LanguageModel) -> None:
    asked: dict[str, Any] = {"temperature": 0, "tool_choice": "required", "max_new_tokens": 60}
    messages = [{"role": "user", "content": "What is 457 + 998?"}]
    result = model.chat(messages, tools=[add], **asked)
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("add", {"a": 457, "b": 998})]
    with pytest.raises(
        ValueError, match=r"^tools\[1\]: expected a tool in OpenAI's form or a Python function, found 3"
    ):
        model.chat(messages, tools=[add, 3])  # type: ignore[list-item]


def test_the_tool_to_call_as_openai_names_it() -> None:
    choice = {"type": "function", "function": {"name": "add"}}
    assert ChatSettings(tools=[add], tool_choice=choice).forced_names == ("add",)
    with pytest.raises(ValueError, match=r"^tool_choice: expected one of none, auto, required, add, found \{'type'"):
        ChatSettings(tools=[add], tool_choice={"type": "function"})


def test_one_stop_string(model: LanguageModel) -> None:
    assert model.chat(COUNT, **GREEDY, stop="5").text == model.chat(COUNT, **GREEDY, stop=["5"]).text == "1 2 3 4 "


def test_a_batch_takes_arguments_or_settings(model: LanguageModel) -> None:
    (result,) = model.chat_batch([COUNT], **GREEDY)
    assert result.text == "1 2 3 4 5 6 7"
    with pytest.raises(ValueError, match=r"^settings: expected settings or arguments, found both \(temperature\)"):
        model.chat_batch([COUNT], ChatSettings(), temperature=0)
    with pytest.raises(ValueError, match=r"^settings: expected ChatSettings, found 'temperature'"):
        model.chat_batch([COUNT], {"temperature": 0})  # type: ignore[arg-type]


def test_presets_of_a_prompt_without_a_template(model: LanguageModel) -> None:
    """As the checkpoint says, unless a preset is asked for; auto sees whether the prompt ends inside thoughts."""

    def temperature(prompt: str, **options: Any) -> float:
        return model.generate(prompt, **options)._sequence.sampler.params.temperature

    assert temperature("<think>\n") == 0.6
    assert temperature("<think>\n", preset="auto") == temperature("x", preset="thinking") == 1.0
    assert model.generate("<think>\n", preset="auto")._sequence.sampler.params.top_p == 0.95
    assert model.generate("<think>\n\n</think>", preset="auto")._sequence.sampler.params.top_p == 1.0
    ids = model.tokenizer.encode("<think>\n")
    assert model.generate(ids, preset="auto")._sequence.sampler.params.top_p == 0.95


def test_settings_tell_what_was_given() -> None:
    assert repr(ChatSettings(temperature=0, top_k=None, stop="x")) == "ChatSettings(temperature=0, stop='x')"
    assert repr(GenerationSettings(seed=3)) == "GenerationSettings(seed=3)"
