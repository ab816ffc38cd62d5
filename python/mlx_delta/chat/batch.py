"""Several conversations at once: prompts padded on the left, a sampler and an answer of its own for each."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.chat.answer import Answer
from mlx_delta.chat.messages import Message
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import ChatResult
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.engine.decode import Steps, run
from mlx_delta.engine.limit import Limit
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler
from mlx_delta.errors import ArgumentError, TemplateError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.text.tokenizer import Tokenizer


def chat_batch(
    network: Network,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    settings: ChatSettings | Sequence[ChatSettings],
) -> list[ChatResult]:
    """The answers, in order. All rows take as many steps as the longest answer. See ``LanguageModel.chat_batch``."""
    if not conversations:
        raise ArgumentError("conversations: expected at least one, found none")
    each = [settings] * len(conversations) if isinstance(settings, ChatSettings) else list(settings)
    wrong = next((one for one in each if not isinstance(one, ChatSettings)), None)
    if wrong is not None:
        raise ArgumentError(f"settings: expected ChatSettings, found {wrong!r:.80}")
    if len(each) != len(conversations):
        raise ArgumentError(f"settings: expected one, or one for each of {len(conversations)}, found {len(each)}")
    pairs = enumerate(zip(conversations, each, strict=True))
    prompts = [_prompt(tokenizer, *pair, f"conversations[{i}]") for i, pair in pairs]
    vocab_size = min(tokenizer.vocab_size, network.config.vocab_size)
    samplers = [
        Sampler(s.sampling(p.thinking, network.config, tokenizer), vocab_size, p.ids)
        for s, p in zip(each, prompts, strict=True)
    ]
    positions = network.config.max_position_embeddings
    limits = [
        Limit.of(len(p.ids), s.max_new_tokens, positions, f"conversations[{i}]")
        for i, (s, p) in enumerate(zip(each, prompts, strict=True))
    ]
    answers = [
        Answer(tokenizer, s, sampler, thinking=p.thinking, limit=limit, written=p.written)
        for s, sampler, p, limit in zip(each, samplers, prompts, limits, strict=True)
    ]
    cache = Cache.empty(network.config)
    for answer in answers:
        answer.clock.start()
    tokens, mask = _padded(prompts)
    shows = {id(s.prompt_progress): s.prompt_progress for s in each if s.prompt_progress is not None}

    def show(done: int, total: int) -> None:
        for one in shows.values():
            one(done, total)

    logits = prefill(network, tokens, cache, mask=mask, progress=show)
    asked = [s.logprobs for s in each if s.logprobs is not None]
    steps = Steps(network, logits, samplers, cache, logprobs=max(asked, default=None))
    for row, token, likelihood in run(steps, answers, max(limit.tokens for limit in limits)):
        wanted = each[row].logprobs
        answers[row].push(token, likelihood.head(wanted) if likelihood and wanted is not None else None)
    return [answer.result(len(prompt.ids)) for answer, prompt in zip(answers, prompts, strict=True)]


def _padded(prompts: Sequence[Prompt]) -> tuple[mx.array, mx.array | None]:
    """Tokens [B, T], and which of them are there, bool [B, T]: None when all are."""
    longest = max(len(prompt.ids) for prompt in prompts)
    missing = [longest - len(prompt.ids) for prompt in prompts]
    tokens = mx.array([[0] * n + prompt.ids for n, prompt in zip(missing, prompts, strict=True)])
    return tokens, (mx.arange(longest) >= mx.array(missing)[:, None]) if any(missing) else None


def _prompt(tokenizer: Tokenizer, messages: Sequence[Message], settings: ChatSettings, where: str) -> Prompt:
    try:
        return Prompt.build(tokenizer, messages, settings)
    except (ArgumentError, TemplateError) as error:
        raise type(error)(f"{where}: {error}") from error
