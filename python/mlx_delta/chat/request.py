"""A prompt as token ids, with the places where it may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta.arch.base import Markup
from mlx_delta.chat.continuation import END, continues, is_empty, mark_end
from mlx_delta.chat.messages import Message, check_texts, prepare_messages
from mlx_delta.chat.pictures import take_pictures
from mlx_delta.chat.settings import ChatSettings as ChatSettings
from mlx_delta.chat.template import render
from mlx_delta.errors import ArgumentError, TemplateError
from mlx_delta.text.tokenizer import Tokenizer
from mlx_delta.vision.media import Medium, Shown
from mlx_delta.vision.placed import PicturesInPlace
from mlx_delta.vision.vision import Vision


@dataclass(frozen=True)
class Prompt:
    """ids: all of it. thinking: whether it ends inside thoughts. written: what it holds of the answer, or of its
    thoughts, already: the last message, where that is the assistant's and without tool calls, is continued.

    pictures: what it shows, in its places; None: nothing.
    """

    ids: list[int]
    thinking: bool
    written: str = ""
    pictures: PicturesInPlace | None = field(default=None, compare=False)

    @property
    def keys(self) -> list[int]:
        """The ids as a cache knows them: what a placeholder stands for tells it from others."""
        return self.ids if self.pictures is None else self.pictures.keys(self.ids)

    @property
    def positions(self) -> np.ndarray:
        """int32 [3, T]: of each token by time, row and column, which differ where there are pictures (M-RoPE)."""
        if self.pictures is None:
            return np.broadcast_to(np.arange(len(self.ids), dtype=np.int32), (3, len(self.ids)))
        return self.pictures.positions

    @property
    def rope_delta(self) -> int:
        """The position of a token after the prompt, less its index."""
        return 0 if self.pictures is None else self.pictures.rope_delta

    @property
    def features(self) -> mx.array:
        """[n, hidden]: what is read in the places of placeholders, the pictures' and then the videos'."""
        return mx.zeros((0, 0)) if self.pictures is None else self.pictures.features

    @classmethod
    def build(
        cls, tokenizer: Tokenizer, messages: Sequence[Message], settings: ChatSettings, vision: Vision | None = None
    ) -> Prompt:
        """vision: what looks at pictures; None: a model without a tower.

        Raises: ArgumentError naming the message, TemplateError in the template's own words.
        """
        messages, shown = take_pictures(messages)
        prepared = prepare_messages(messages, strict=settings.strict)
        media = _opened(shown, vision)
        check_texts(settings.tools, "tools")
        variables = dict(settings.template_variables)
        if settings.enable_thinking is not None:
            variables["enable_thinking"] = settings.enable_thinking

        def rendered(messages: Sequence[Message], opened: bool) -> str:
            tools = settings.tools or None
            return render_prompt(tokenizer, messages, tools, add_generation_prompt=opened, variables=variables)

        def encode(text: str) -> list[int]:
            return (
                vision.sight.tokens.encode(text, media, tokenizer.encode)
                if vision and media
                else tokenizer.encode(text)
            )

        def or_nothing(messages: Sequence[Message]) -> str:
            try:
                return rendered(messages, False)
            except TemplateError:  # one that wants a question or an answer first
                return ""

        written = ""
        if continues(prepared[-1], tokenizer.markup):
            marked, written = mark_end(prepared, tokenizer.markup)
            text = rendered(marked, False)
            end = text.rfind(END)
            if end < 0:
                raise TemplateError("chat template: expected it to show the last message, which is to be continued")
            text, prepared = text[:end], prepared[:-1]
            closed = or_nothing(prepared)
        else:
            if is_empty(prepared[-1], tokenizer.markup):
                prepared = prepared[:-1]
            text, closed = rendered(prepared, True), rendered(prepared, False)
        ids = encode(text)
        tail = text[len(closed) :] if text.startswith(closed) else text
        thinking = ends_in_thoughts(tail, tokenizer.markup)
        pictures = None
        if vision and media:
            vision.sight.tokens.check(text, media)
            pictures = PicturesInPlace(ids, media, vision.sight.tokens, vision.look)
        return cls(ids, thinking, written, pictures)


def _opened(shown: Sequence[Shown], vision: Vision | None) -> list[Medium]:
    if shown and vision is None:
        kind = {"image": "an image", "video": "a video"}[shown[0].kind]
        raise ArgumentError(f"{shown[0].where}: expected text, for this model has no vision tower, found {kind}")
    return [vision.open(each) for each in shown] if vision else []


def ends_in_thoughts(prompt: str, markup: Markup) -> bool:
    opening, closing = markup.thoughts
    return prompt.rfind(opening) > prompt.rfind(closing)


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """``render`` with the checkpoint's template, the one named ``tool_use`` where there are tools and such a one, and
    with its special tokens for variables."""
    templates = tokenizer.chat_templates
    template = templates.get("tool_use") if tools else None
    template = template or tokenizer.chat_template
    if template is None:
        wanted, found = ("a default one", ", ".join(templates)) if templates else ("one", "none")
        raise TemplateError(f"chat template: expected {wanted} in the checkpoint's files, found {found}")
    return render(
        template,
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        variables={**tokenizer.special_tokens, **variables},
    )


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """The length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
