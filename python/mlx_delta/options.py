"""The arguments of everything that answers, each spelled once: its name, its type, what it means, how it is checked.

``chat``, ``chat_stream``, ``chat_batch``, ``generate``, sessions and the command line take these; imports nothing of
ours, and nothing heavy, so that ``mlx-delta --help`` stays instant. None is the default of every argument, for clients
of OpenAI's API send null for what they leave out.
"""

from __future__ import annotations

import difflib
import inspect
import numbers
import textwrap
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from typing_extensions import Doc, TypedDict

from mlx_delta.errors import ArgumentError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class SamplingOptions(TypedDict, total=False):
    """How each token is chosen. What is None is the preset's; ``SamplingParams`` says what the numbers do."""

    temperature: Annotated[float | None, Doc("0 takes the likeliest token, and nothing of the preset.")]
    top_k: Annotated[int | None, Doc("Keep the k likeliest tokens; 0 keeps all.")]
    top_p: Annotated[float | None, Doc("Keep the likeliest tokens that have this mass; 1 keeps all.")]
    min_p: Annotated[float | None, Doc("Keep tokens at least this likely against the likeliest; 0 keeps all.")]
    presence_penalty: Annotated[float | None, Doc("Subtracted from the logit of what was generated before; 0 is off.")]
    repetition_penalty: Annotated[
        float | None, Doc("Divides positive logits of what was read or generated before, multiplies others; 1 is off.")
    ]


class GenerationOptions(SamplingOptions, total=False):
    """What a run of the model depends on besides its prompt."""

    seed: Annotated[int | None, Doc("Makes a run repeatable; else each draws afresh.")]
    preset: Annotated[
        str | None,
        Doc(
            "Sampling of the model card: auto (thinking or instruct, as the prompt has it; greedy where the checkpoint "
            "says do_sample: false), thinking, coding, instruct, or checkpoint (generation_config.json)."
        ),
    ]
    max_new_tokens: Annotated[int | None, Doc("Most tokens to generate.")]
    stop: Annotated[
        str | Sequence[str] | None,
        Doc("A string, or several, to end the text before; not looked for in thoughts and tool calls."),
    ]
    speculate: Annotated[
        bool | int | str | None,
        Doc(
            "Draft tokens (by the checkpoint's MTP head, or copied from the text so far) and check several in one "
            "pass, which changes no token: auto, as many as pay; 1 to 7, so many; False or off (the default), none."
        ),
    ]
    prompt_progress: Annotated[
        Callable[[int, int], None] | None,
        Doc("Called between the parts of a long prompt with the tokens computed so far, and all that there are."),
    ]


class ChatOptions(GenerationOptions, total=False):
    """What an answer depends on besides the messages."""

    tools: Annotated[
        Sequence[Mapping[str, Any] | Callable[..., Any]] | None,
        Doc("What the model may call: tools in OpenAI's form, or typed Python functions (see function_tool)."),
    ]
    tool_choice: Annotated[
        str | Mapping[str, Any] | None,
        Doc("auto (the default), none, required (one of the tools), or the name of the one to call."),
    ]
    enable_thinking: Annotated[bool | None, Doc("Think before answering, or do not; else as the chat template has it.")]
    thinking_budget: Annotated[int | None, Doc("End thoughts after so many tokens.")]
    logprobs: Annotated[int | None, Doc("Tell each token's log probability, and of so many of the likeliest.")]
    json_schema: Annotated[
        Mapping[str, Any] | None,
        Doc(
            "The text is a JSON document that follows this schema; thoughts and tool calls stay free. Needs llguidance "
            "(the extra structured); the model is not told, so say in a message what to write."
        ),
    ]
    response_format: Annotated[
        Mapping[str, Any] | None, Doc("json_schema as OpenAI's clients say it: text, json_object or json_schema.")
    ]
    strict: Annotated[
        bool | None,
        Doc(
            "Give the template the messages as they are; else developer counts as system, and system messages merge "
            "into one at the beginning."
        ),
    ]
    template_variables: Annotated[Mapping[str, Any] | None, Doc("Further variables for the chat template.")]


SAMPLING = tuple(SamplingOptions.__annotations__)


def checked(given: Mapping[str, object], form: type[T]) -> T:
    """``given`` as the TypedDict ``form`` has it: names and types checked, numbers as Python's, what is None left out.

    Raises: TypeError for a name that is not in it (as Python does), ArgumentError for a value of another type.
    """
    hints: dict[str, tuple[Any, ...]] = _types(form)  # type: ignore[arg-type]  # a class is hashable
    found: dict[str, object] = {}
    for name, value in given.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, 1)
            hint = f": did you mean {close[0]}?" if close else f"; there are {', '.join(hints)}"
            raise TypeError(f"{name}: unexpected argument{hint}")
        if value is not None:
            found[name] = _checked(value, hints[name], name)
    return cast(T, found)


def option_texts(form: type) -> dict[str, str]:
    """What each option means."""
    hints = get_type_hints(form, include_extras=True)
    return {name: next(x.documentation for x in get_args(hint) if isinstance(x, Doc)) for name, hint in hints.items()}


def takes(form: type) -> Callable[[F], F]:
    """For functions of ``**options: Unpack[form]``: ``help`` and ``inspect.signature`` tell each argument too."""

    def add(function: F) -> F:
        named = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        hints = get_type_hints(form)
        named += [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[n]) for n in hints
        ]
        texts = (textwrap.fill(f"{n}: {text}", 116) for n, text in option_texts(form).items())
        lines = textwrap.indent("\n".join(text.replace("\n", "\n    ") for text in texts), "    ")
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n{lines}"
        function.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        return function

    return add


_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    Callable: "a function",
    Sequence: "a list",
    Mapping: "a mapping",
}


@lru_cache
def _types(form: Hashable) -> dict[str, tuple[Any, ...]]:
    """The types that each option may have, None not among them."""
    return {name: _alternatives(hint) for name, hint in get_type_hints(form).items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(get_origin(option) or option for option in options if option is not type(None))


def _checked(value: Any, expected: tuple[Any, ...], name: str) -> Any:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):  # numpy's scalars among them
        if int in expected and isinstance(value, numbers.Integral):
            return int(value)
        if float in expected:
            return value if isinstance(value, (int, float)) else float(value)
    elif isinstance(value, str):
        if str in expected:
            return value
    elif any(kind is not float and kind is not int and isinstance(value, kind) for kind in expected):
        return value
    words = " or ".join(_WORDS[kind] for kind in expected)
    raise ArgumentError(f"{name}: expected {words}, found {value!r:.80}")
