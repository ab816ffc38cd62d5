"""From a request's fields to what the library is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlx_delta.chat.pictures import refuse_paths, take_pictures
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.stream import ChatStream
from mlx_delta.errors import RequestError
from mlx_delta.language_model import LanguageModel
from mlx_delta.options import SAMPLING
from mlx_delta.server.limits import Limits
from mlx_delta.server.models import Json, Sampling
from mlx_delta.server.runner import Make
from mlx_delta.server.service import Service
from mlx_delta.vision.media import picture_tokens

_MOST_CHOICES = 16


@dataclass(frozen=True)
class Question:
    """messages and options as ``LanguageModel.chat_stream`` takes them."""

    messages: Sequence[Json]
    options: Mapping[str, Any]

    def prompt(self, model: LanguageModel, limits: Limits) -> Prompt:
        """The prompt that the template makes of it."""
        _check_images(model, self.messages, limits)
        return model.prompt(self.messages, **self.options)

    def checked(self, service: Service) -> Question:
        """With an end, and drafts as the server has them.

        Raises: RequestError 422 where there are more messages than the server takes.
        """
        limits = service.limits
        if len(self.messages) > limits.messages:
            message = f"messages: expected at most {limits.messages}, found {len(self.messages)}"
            raise RequestError(422, message, param="messages")
        asked = self.options.get("max_new_tokens")
        tokens = limits.answer_tokens if asked is None else min(asked, limits.answer_tokens)
        served = {"max_new_tokens": tokens, "speculate": service.speculate}
        return replace(self, options={**self.options, **served})

    def makes(self, service: Service, choices: int | None = None) -> list[Make]:
        """An answer for each choice: the first as the library gives it, the next ones with the seeds after its own. All
        are of one prompt, whose pictures are decoded once."""
        count = 1 if choices is None else choices
        limits = service.limits
        most = min(_MOST_CHOICES, limits.concurrent + limits.queue)
        if not 1 <= count <= most:
            raise RequestError(400, f"n: expected 1 to {most}, found {count}", param="n")
        seed = self.options.get("seed")
        each = [self.options if seed is None else {**self.options, "seed": (seed + i) % 2**64} for i in range(count)]
        made: list[Prompt] = []

        def prompt() -> Prompt:
            if not made:
                made.append(self.prompt(service.model, limits))
            return made[0]

        return [partial(_begin, service.model, prompt, options, limits) for options in each]


def _begin(
    model: LanguageModel, prompt: Callable[[], Prompt], options: Mapping[str, Any], limits: Limits
) -> ChatStream:
    """An answer, its prompt made and nothing computed. Raises: RequestError 422 for a prompt beyond the limit."""
    stream = model.chat_stream(prompt(), **options)
    if limits.prompt_tokens is not None and stream.prompt_tokens > limits.prompt_tokens:
        found = f"expected a prompt of at most {limits.prompt_tokens} tokens, found {stream.prompt_tokens}"
        raise RequestError(422, f"messages: {found}", param="messages", code="context_length_exceeded")
    return stream


def _check_images(model: LanguageModel, messages: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Before any is decoded: a file of some kilobytes may hold a million patches, and a request a hundred of them.

    Raises: RequestError naming the image that is too many; ArgumentError for one that is none, or not in the request.
    """
    refuse_paths(messages)  # no part of a request gets here that has one
    if model.vision is None:
        return
    tokens = 0
    for shown in take_pictures(messages)[1]:
        tokens += picture_tokens(shown, model.vision.sight.pictures)
        if tokens > limits.image_tokens:
            found = f"expected images of at most {limits.image_tokens} tokens together, found at least {tokens}"
            raise RequestError(400, f"{shown.where}: {found}", param=shown.where)


def sampling_options(body: Sampling) -> dict[str, Any]:
    """Raises: RequestError for what would change the answer and cannot be had."""
    for name in ("frequency_penalty", "logit_bias"):
        if getattr(body, name):
            raise RequestError(400, f"{name}: expected nothing (it is not supported), found a value", param=name)
    names = (*SAMPLING, "seed", "preset", "stop")
    return {name: getattr(body, name) for name in names if getattr(body, name) is not None}


def effort_options(effort: str | None) -> dict[str, Any]:
    """A model thinks or does not; how much is its own affair."""
    return {"enable_thinking": False} if effort == "none" else {}
