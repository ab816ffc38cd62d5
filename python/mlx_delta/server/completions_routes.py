"""OpenAI's completions, and the tokenizer."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.errors import RequestError
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.completions import CompletionEvent, CompletionStream
from mlx_delta.server.completions_models import CompletionRequest, DetokenizeRequest, TokenizeRequest
from mlx_delta.server.limits import Limits
from mlx_delta.server.models import Json
from mlx_delta.server.openai_chat import message, tool, usage_of
from mlx_delta.server.question import Question, sampling_options
from mlx_delta.server.runner import Answers, Make
from mlx_delta.server.service import Service, event_stream, json_response, service_of
from mlx_delta.server.sse import DONE, KEEP_ALIVE, frame, until_gone
from mlx_delta.text.tokenizer import Tokenizer

router = APIRouter()

_TOKENS = 16  # of an answer where nothing is said, as OpenAI has it


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """A prompt as it stands, continued: any model's name will do."""
    service = service_of(request)
    answers = await service.answers(request, _makes(body, service))
    reply = _Reply(body, service)
    if body.stream:
        return event_stream(reply.chunks(answers), answers, request.url.path, None)
    return json_response(await until_gone(request, reply.whole(answers)))


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Json:
    """Token ids of a text, or of the prompt that the template makes of messages."""
    service = service_of(request)
    ids = await service.runner.call(partial(_tokens, body, service.model, service.limits))
    return {"tokens": ids, "count": len(ids), "max_model_len": service.model.config.text.max_position_embeddings}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Json:
    """The text of token ids, as vLLM and as llama-server name it."""
    service = service_of(request)
    most = service.model.tokenizer.vocab_size
    wrong = next((i for i in body.tokens if not 0 <= i < most), None)
    if wrong is not None:
        raise RequestError(400, f"tokens: expected ids below {most}, found {wrong}", param="tokens")
    text = await service.runner.call(partial(service.model.tokenizer.decode, body.tokens))
    return {"prompt": text, "content": text}


def _tokens(body: TokenizeRequest, model: LanguageModel, limits: Limits) -> list[int]:
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise RequestError(400, f"prompt: expected one of prompt, content and messages, found {found}", param="prompt")
    if body.messages is None:
        return model.tokenizer.encode(body.prompt or body.content or "")
    variables = dict(body.chat_template_kwargs or {})
    thinking = variables.pop("enable_thinking", None)
    tools = [tool(each) for each in body.tools or ()]
    messages = [message(each, f"messages[{i}]") for i, each in enumerate(body.messages)]
    options: Json = {"tools": tools, "template_variables": variables, "enable_thinking": thinking}
    return Question(messages, options).prompt(model, limits).ids


def _makes(body: CompletionRequest, service: Service) -> list[Make]:
    if body.suffix:
        raise RequestError(400, "suffix: expected nothing (it is not supported), found text", param="suffix")
    count = 1 if body.n is None else body.n
    if body.best_of is not None and body.best_of > count:
        raise RequestError(400, f"best_of: expected at most n, {count}, found {body.best_of}", param="best_of")
    prompts: Sequence[Any] = [body.prompt]
    if isinstance(body.prompt, list) and (not body.prompt or not isinstance(body.prompt[0], int)):
        prompts = body.prompt
    if not prompts:
        raise RequestError(400, "prompt: expected at least one, found none", param="prompt")
    limits, options = service.limits, {**sampling_options(body), "speculate": service.speculate}
    most = limits.concurrent + limits.queue
    if not 1 <= count <= most or len(prompts) * count > most:
        found = f"expected 1 to {most} answers, found n = {count} for {len(prompts)} prompts"
        raise RequestError(400, f"n: {found}", param="n")
    seed = options.get("seed")
    return [
        partial(
            CompletionStream,
            service.model,
            prompt,
            options if seed is None else {**options, "seed": (seed + i) % 2**64},
            limits,
            max_tokens=_TOKENS if body.max_tokens is None else body.max_tokens,
            echo=bool(body.echo),
            logprobs=body.logprobs,
        )
        for prompt in prompts
        for i in range(count)
    ]


class _Reply:
    def __init__(self, body: CompletionRequest, service: Service) -> None:
        self._tokenizer = service.model.tokenizer
        self._logprobs = body.logprobs is not None
        self._include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model or service.name,
            "system_fingerprint": service.fingerprint,
        }

    async def chunks(self, answers: Answers) -> AsyncIterator[bytes]:
        offsets = [0] * answers.count

        def frames_of(i: int, event: CompletionEvent) -> Iterator[bytes]:
            reason = event.result.finish_reason if event.result is not None else None
            choice = self._choice(i, event.text, [event], offsets[i], reason)
            offsets[i] += len(event.text)
            yield frame({**self._head, "choices": [choice], **({"usage": None} if self._include_usage else {})})

        async for piece in answers.frames(frames_of, KEEP_ALIVE):
            yield piece
        if self._include_usage:
            yield frame({**self._head, "choices": [], "usage": self._usage(answers)})
        yield DONE

    async def whole(self, answers: Answers) -> Json:
        events: list[list[CompletionEvent]] = [[] for _ in range(answers.count)]
        async for i, event in answers:
            events[i].append(event)
        choices = []
        for i, each in enumerate(events):
            result = each[-1].result
            text = "".join(event.text for event in each)
            choices.append(self._choice(i, text, each, 0, result.finish_reason if result else None))
        return {**self._head, "choices": choices, "usage": self._usage(answers)}

    def _usage(self, answers: Answers) -> Json:
        """Each prompt counts once for each of its answers, as each computes it."""
        found = usage_of([answers.usages[i] for i in range(answers.count)])
        found["prompt_tokens"] = sum(usage.prompt_tokens for usage in answers.usages.values())
        return {**found, "total_tokens": found["prompt_tokens"] + found["completion_tokens"]}

    def _choice(
        self, index: int, text: str, events: Sequence[CompletionEvent], offset: int, reason: str | None
    ) -> Json:
        logprobs = _logprobs([pair for event in events for pair in event.tokens], self._tokenizer, offset)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs if self._logprobs else None,
            "finish_reason": reason,
        }


def _logprobs(tokens: Sequence[tuple[int, Likelihood | None]], tokenizer: Tokenizer, offset: int) -> Json:
    found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, likelihood in tokens:
        text = tokenizer.decode([token])
        found["tokens"].append(text)
        found["token_logprobs"].append(None if likelihood is None else likelihood.logprob)
        top = None if likelihood is None else {tokenizer.decode([i]): logprob for i, logprob in likelihood.top}
        found["top_logprobs"].append(top)
        found["text_offset"].append(offset)
        offset += len(text)
    return found
