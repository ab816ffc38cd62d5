"""The settings of a run or an answer: options as given, checked once, with what holds where they are silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from mlx_delta.chat.presets import explicit_sampling, sampling
from mlx_delta.chat.tools import parameter_schemas
from mlx_delta.config import TextConfig
from mlx_delta.engine.draft import MOST_DRAFTS
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.errors import ArgumentError
from mlx_delta.options import ChatOptions, GenerationOptions, checked, takes
from mlx_delta.text.stop import StopStrings
from mlx_delta.text.tokenizer import Tokenizer

MAX_LOGPROBS = 100


class GenerationSettings:
    """What a run depends on besides its prompt, checked, with the defaults of what is not given.

    options: those that were given, as ``GenerationOptions`` has them.
    Raises: TypeError for an argument of an unknown name, ValueError naming the argument.
    """

    @takes(GenerationOptions)
    def __init__(self, **options: Unpack[GenerationOptions]) -> None:
        self._take(checked(options, GenerationOptions), max_new_tokens=256, preset="checkpoint")

    def _take(self, given: GenerationOptions, *, max_new_tokens: int, preset: str) -> None:
        self.options = given
        self.preset = given.get("preset") or preset
        count, stop = given.get("max_new_tokens"), given.get("stop") or ()
        self.max_new_tokens = max_new_tokens if count is None else count
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens: expected at least 1, found {self.max_new_tokens}")
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        StopStrings(self.stop)
        self.prompt_progress = given.get("prompt_progress")
        self.speculate = _speculate(given.get("speculate"))
        explicit_sampling(given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def sampling(self, thinking: bool, config: TextConfig, tokenizer: Tokenizer) -> SamplingParams:
        """thinking: whether the prompt ends inside thoughts."""
        defaults = tokenizer.generation_defaults
        return sampling(self.preset, self.options, thinking=thinking, config=config, defaults=defaults)


class ChatSettings(GenerationSettings):
    """All that an answer depends on besides the messages, checked, with the defaults of what is not given.

    options: those that were given, as ``ChatOptions`` has them. schema: what the answer's text has to follow, or None
    where it is free. forced_names: the tools of which one must be called, () where the model is free.
    Raises: TypeError for an argument of an unknown name, ValueError naming the argument.
    """

    @takes(ChatOptions)
    def __init__(self, **options: Unpack[ChatOptions]) -> None:
        given = checked(options, ChatOptions)
        self._take(given, max_new_tokens=2048, preset="auto")
        self.tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(given.get("tools") or ())]
        names = tuple(parameter_schemas(self.tools))
        self.tool_choice = _tool_choice(given.get("tool_choice"), names)
        forced = {"none": (), "auto": (), "required": names}
        self.forced_names = forced.get(self.tool_choice, (self.tool_choice,))
        self.enable_thinking = given.get("enable_thinking")
        self.thinking_budget = _in_range("thinking_budget", given.get("thinking_budget"), None)
        self.logprobs = _in_range("logprobs", given.get("logprobs"), MAX_LOGPROBS)
        self.strict = bool(given.get("strict"))
        self.template_variables = given.get("template_variables") or {}
        if "json_schema" in given and "response_format" in given:
            raise ArgumentError("response_format: expected json_schema or response_format, found both")
        self.schema = given["json_schema"] if "json_schema" in given else _schema_of(given.get("response_format"))


def _speculate(given: bool | int | str | None) -> int | None:
    """How many drafts a pass checks; None: as many as pay."""
    if given is True or given == "auto":
        return None
    drafts = 0 if given in (None, False, "off") else int(str(given)) if str(given).isdecimal() else -1
    if not 0 <= drafts <= MOST_DRAFTS:
        raise ArgumentError(f"speculate: expected auto, off, or 1 to {MOST_DRAFTS} drafts, found {given!r:.80}")
    return drafts


def _tool(tool: object, where: str) -> Mapping[str, Any]:
    if isinstance(tool, Mapping):
        return tool
    if callable(tool):
        from mlx_delta.chat.functions import function_tool

        return function_tool(tool)
    raise ArgumentError(f"{where}: expected a tool in OpenAI's form or a Python function, found {tool!r:.80}")


def _tool_choice(given: str | Mapping[str, Any] | None, names: Sequence[str]) -> str:
    """OpenAI's clients name the one to call as {"type": "function", "function": {"name": ..}}."""
    choice: object = given or "auto"
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if choice == "required" and not names:
        raise ArgumentError("tool_choice: expected tools to choose from, found none")
    choices = ("none", "auto", "required", *names)
    if not isinstance(choice, str) or choice not in choices:
        raise ArgumentError(f"tool_choice: expected one of {', '.join(choices)}, found {given!r:.80}")
    return choice


def _in_range(name: str, value: int | None, most: int | None) -> int | None:
    if value is not None and (value < 0 or (most is not None and value > most)):
        expected = "at least 0" if most is None else f"0 to {most}"
        raise ArgumentError(f"{name}: expected {expected}, found {value}")
    return value


def _schema_of(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """OpenAI's form, and llama.cpp's, which has the schema beside the type."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ArgumentError(f"response_format: expected type text, json_object or json_schema, found {kind!r:.80}")
    inner = response_format.get("json_schema", response_format)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None and kind == "json_object":
        return {"type": "object"}
    if not isinstance(schema, Mapping):
        raise ArgumentError(f"response_format: expected a schema, an object, in json_schema, found {schema!r:.80}")
    return schema
