"""A request for an answer: the settings, checked; and the prompt as token ids, with the places where it may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_delta.chat.messages import Message, prepare_messages
from mlx_delta.chat.presets import sampling
from mlx_delta.chat.template import TemplateError, render
from mlx_delta.chat.tools import parameter_schemas
from mlx_delta.config import TextConfig
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.text.stop import StopStrings
from mlx_delta.text.tokenizer import Tokenizer

MAX_LOGPROBS = 100


@dataclass(frozen=True)
class ChatSettings:
    """All that an answer depends on besides the messages; see ``ChatMethods.chat``. Raises ValueError."""

    tools: Sequence[Mapping[str, Any]] | None = None
    max_new_tokens: int = 2048
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    preset: str = "auto"
    stop: Sequence[str] = ()
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    tool_choice: str = "auto"
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    strict: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, found {self.max_new_tokens}")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise ValueError(f"thinking_budget: expected at least 0, found {self.thinking_budget}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs: expected 0 to {MAX_LOGPROBS}, found {self.logprobs}")
        StopStrings(self.stop)
        if self.json_schema is not None and self.response_format is not None:
            raise ValueError("response_format: expected json_schema or response_format, found both")
        _ = self.schema
        names = list(parameter_schemas(self.tools or ()))
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: expected tools to choose from, found none")
        if self.tool_choice not in ("none", "auto", "required", *names):
            choices = ", ".join(["none", "auto", "required", *names])
            raise ValueError(f"tool_choice: expected one of {choices}, found {self.tool_choice!r}")

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """What the answer's text has to follow, or None where it is free."""
        if self.response_format is None:
            return self.json_schema
        return _schema_of(self.response_format)

    @property
    def forced_names(self) -> tuple[str, ...]:
        """The tools of which one must be called: () where the model is free."""
        if self.tool_choice in ("none", "auto"):
            return ()
        names = tuple(parameter_schemas(self.tools or ()))
        return names if self.tool_choice == "required" else (self.tool_choice,)

    def sampling(self, thinking: bool, config: TextConfig, tokenizer: Tokenizer) -> SamplingParams:
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
        }
        defaults = tokenizer.generation_defaults
        return sampling(self.preset, given, self.seed, thinking=thinking, config=config, defaults=defaults)


@dataclass(frozen=True)
class Prompt:
    """ids: all of it. thinking: whether it ends inside thoughts.

    stable: how many of the ids are the conversation, without the opening of an answer. lasting: how many of them the
    prompt of the user's next message begins with: a template drops the thoughts before it, in all steps of a chain of
    tool calls too.
    """

    ids: list[int]
    thinking: bool
    stable: int
    lasting: int

    @classmethod
    def build(cls, tokenizer: Tokenizer, messages: Sequence[Message], settings: ChatSettings) -> Prompt:
        """Raises: ValueError naming the message, TemplateError in the template's own words."""
        prepared = prepare_messages(messages, strict=settings.strict)
        variables = dict(settings.template_variables)
        if settings.enable_thinking is not None:
            variables["enable_thinking"] = settings.enable_thinking
        template = template_of(tokenizer)

        def rendered(messages: Sequence[Message], opened: bool) -> str:
            tools = settings.tools or None
            return render(template, messages, tools=tools, add_generation_prompt=opened, variables=variables)

        text, closed = rendered(prepared, True), rendered(prepared, False)
        ids = tokenizer.encode(text)
        stable = lasting = common_prefix(ids, tokenizer.encode(closed))
        if prepared[-1]["role"] != "user":
            try:
                after = rendered([*prepared, {"role": "user", "content": "?"}], False)
            except TemplateError:  # one that wants an answer first: nothing is sure to last
                after = ""
            lasting = min(stable, common_prefix(ids, tokenizer.encode(after)))
        tail = text[len(closed) :] if text.startswith(closed) else text
        return cls(ids, tail.rfind("<think>") > tail.rfind("</think>"), stable, lasting)


def _schema_of(response_format: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """OpenAI's form, and llama.cpp's, which has the schema beside the type."""
    kind = response_format.get("type") if isinstance(response_format, Mapping) else response_format
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ValueError(f"response_format: expected type text, json_object or json_schema, found {kind!r:.80}")
    inner = response_format.get("json_schema", response_format)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None and kind == "json_object":
        return {"type": "object"}
    if not isinstance(schema, Mapping):
        raise ValueError(f"response_format: expected a schema, an object, in json_schema, found {schema!r:.80}")
    return schema


def template_of(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        raise TemplateError("chat template: expected one in the checkpoint's files, found none")
    return tokenizer.chat_template


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
