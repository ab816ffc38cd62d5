"""Several conversations at once: prompts padded on the left, a sampler and an answer of its own for each."""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.chat.answer import Answer
from mlx_delta.chat.messages import Message
from mlx_delta.chat.request import ChatSettings, Prompt
from mlx_delta.chat.result import ChatResult, Usage
from mlx_delta.engine.decode import Steps
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.qwen3_5 import Network
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
    prompts = [Prompt.build(tokenizer, *pair) for pair in zip(conversations, each, strict=True)]
    vocab_size = min(tokenizer.vocab_size, network.config.vocab_size)
    samplers = [
        Sampler(s.sampling(p.thinking, network.config, tokenizer), vocab_size, p.ids)
        for s, p in zip(each, prompts, strict=True)
    ]
    answers = [
        Answer(tokenizer, s, sampler, thinking=p.thinking)
        for s, sampler, p in zip(each, samplers, prompts, strict=True)
    ]
    begin = first = time.perf_counter()
    cache = Cache.empty(network.config)
    tokens, mask = _padded(prompts)
    logits = prefill(network, tokens, cache, mask=mask)
    asked = [s.logprobs for s in each if s.logprobs is not None]
    steps = Steps(network, logits, samplers, cache, logprobs=max(asked, default=None))
    most = max(s.max_new_tokens for s in each)
    seconds = [0.0] * len(answers)
    for count in range(1, most + 1):
        for row, answer in enumerate(answers):
            if answer.finish_reason is None:
                answer.steer(steps, row)
        chosen = steps.next(last=count == most)
        now = time.perf_counter()
        first = now if count == 1 else first
        for row, answer in enumerate(answers):
            if answer.finish_reason is None:
                wanted = each[row].logprobs
                answer.push(chosen[row], None if wanted is None else steps.likelihoods[row].head(wanted))
                seconds[row] = now - first
        if all(answer.finish_reason for answer in answers):
            break
    usages = [
        Usage(
            prompt_tokens=len(prompt.ids),
            prefilled_tokens=len(prompt.ids),
            completion_tokens=len(answer.token_ids),
            thinking_tokens=answer.thinking_tokens,
            prefill_seconds=first - begin,
            decode_seconds=taken,
        )
        for prompt, answer, taken in zip(prompts, answers, seconds, strict=True)
    ]
    return [answer.result(usage) for answer, usage in zip(answers, usages, strict=True)]


def _padded(prompts: Sequence[Prompt]) -> tuple[mx.array, mx.array | None]:
    """Tokens [B, T], and which of them are there, bool [B, T]: None when all are."""
    longest = max(len(prompt.ids) for prompt in prompts)
    missing = [longest - len(prompt.ids) for prompt in prompts]
    tokens = mx.array([[0] * n + prompt.ids for n, prompt in zip(missing, prompts, strict=True)])
    return tokens, (mx.arange(longest) >= mx.array(missing)[:, None]) if any(missing) else None
