"""A prompt as token ids, with the places where it may be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_delta.arch.base import Markup
from mlx_delta.chat.messages import Message, prepare_messages
from mlx_delta.chat.settings import ChatSettings as ChatSettings
from mlx_delta.chat.template import render
from mlx_delta.errors import TemplateError
from mlx_delta.text.tokenizer import Tokenizer


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
        """Raises: ArgumentError naming the message, TemplateError in the template's own words."""
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
        return cls(ids, ends_in_thoughts(tail, tokenizer.markup), stable, lasting)


def ends_in_thoughts(prompt: str, markup: Markup) -> bool:
    opening, closing = markup.thoughts
    return prompt.rfind(opening) > prompt.rfind(closing)


def template_of(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        raise TemplateError("chat template: expected one in the checkpoint's files, found none")
    return tokenizer.chat_template


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
