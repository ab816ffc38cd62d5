"""Several conversations at once, each of which is answered as it is alone."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_delta.chat.messages import Message
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import ChatResult
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.errors import ArgumentError, TemplateError
from mlx_delta.text.tokenizer import Tokenizer
from mlx_delta.vision.placed import look_at
from mlx_delta.vision.vision import Vision


def chat_batch(
    engine: Engine,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    settings: ChatSettings | Sequence[ChatSettings],
    vision: Vision | None = None,
) -> list[ChatResult]:
    """The answers, in order. See ``LanguageModel.chat_batch``."""
    if not conversations:
        raise ArgumentError("conversations: expected at least one, found none")
    each = [settings] * len(conversations) if isinstance(settings, ChatSettings) else list(settings)
    wrong = next((one for one in each if not isinstance(one, ChatSettings)), None)
    if wrong is not None:
        raise ArgumentError(f"settings: expected ChatSettings, found {wrong!r:.80}")
    if len(each) != len(conversations):
        raise ArgumentError(f"settings: expected one, or one for each of {len(conversations)}, found {len(each)}")
    pairs = enumerate(zip(conversations, each, strict=True))
    prompts = [_prompt(tokenizer, *pair, vision, f"conversations[{i}]") for i, pair in pairs]
    streams = [
        ChatStream(
            engine,
            tokenizer,
            prompt,
            one,
            [],
            Exclusive("batch"),
            f"conversations[{i}]",
        )
        for i, (prompt, one) in enumerate(zip(prompts, each, strict=True))
    ]
    if vision is not None:
        look_at([(prompt.pictures, 0) for prompt in prompts if prompt.pictures is not None], vision.look)
    try:
        for stream in streams:
            stream.start()
        return [stream.result() for stream in streams]
    finally:
        for stream in streams:
            stream.close()


def _prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: ChatSettings, vision: Vision | None, where: str
) -> Prompt:
    try:
        return Prompt.build(tokenizer, messages, settings, vision)
    except (ArgumentError, TemplateError) as error:
        raise type(error)(f"{where}: {error}") from error
