"""How far a model's predictions are from a reference's: Kullback-Leibler divergence, perplexity, top-1 agreement.

For every position of a text, p the reference's distribution of the next token and q the model's,

    KLD = sum over tokens of p (log p - log q),    perplexity = exp(mean of -log q(the token that follows)).

The text is cut into windows, each from an empty cache, as llama.cpp's llama-perplexity does. KLD counts every position
(also a window's last, whose next token is not needed), and rows of the vocabulary's padding are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta.errors import ArgumentError, TokenizerError
from mlx_delta.language_model import LanguageModel
from mlx_delta.streams import OneStream
from mlx_delta.summary import summarize

CONTEXT = 512  # tokens a window
_ROWS = 64  # positions whose distributions are compared at once: a quarter million floats each on the real vocabulary
_stream = OneStream()


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model against its reference. KLD in nats; ``top1``: part of positions with the same likeliest."""

    model: str
    nbytes: int
    tokens: int
    perplexity: float
    reference_perplexity: float
    kld_mean: float
    kld_median: float
    kld_p999: float
    top1: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def evaluate(
    models: Sequence[LanguageModel],
    reference: LanguageModel,
    text: str,
    *,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Compare each of ``models`` with ``reference`` on ``text``, as the reference's tokenizer cuts it.

    context: tokens a window, at least 2. max_tokens: how much of the text to use (None: all). progress: called with the
    tokens done and in all, after each window. The reference runs once, whatever the number of models.
    Raises: ArgumentError naming the argument; TokenizerError when the vocabularies differ.
    """
    check_options(context, max_tokens)
    known = reference.tokenizer.vocab_size
    for model in models:
        found = model.tokenizer.vocab_size
        if found != known:
            raise TokenizerError(f"{model.path}: expected {known} tokens, as {reference.path} has, found {found}")
    ids = reference.tokenizer.encode(text)[:max_tokens]
    if len(ids) < 2:
        raise ArgumentError(f"text: expected at least 2 tokens, found {len(ids)}")
    tallies = [_Tally() for _ in models]
    for start in range(0, len(ids), context):
        window = ids[start : start + context]
        with _stream():
            expected = _logits(reference, window, known)
            for model, tally in zip(models, tallies, strict=True):
                tally.add(_logits(model, window, known), expected, window)
        if progress is not None:
            progress(min(start + context, len(ids)), len(ids))
    return [tally.evaluation(model, len(ids)) for model, tally in zip(models, tallies, strict=True)]


def check_options(context: int, max_tokens: int | None) -> None:
    """Before anything is loaded. Raises: ArgumentError naming the argument."""
    if context < 2:
        raise ArgumentError(f"context: expected at least 2 tokens, found {context}")
    if max_tokens is not None and max_tokens < 2:
        raise ArgumentError(f"max_tokens: expected at least 2, found {max_tokens}")


class _Tally:
    """One model's figures, position by position."""

    def __init__(self) -> None:
        self._klds: list[np.ndarray] = []
        self._agreements: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        self._reference_losses: list[np.ndarray] = []

    def add(self, found: mx.array, expected: mx.array, window: list[int]) -> None:
        """Logits [T, V] of one window of T tokens."""
        for start in range(0, len(window), _ROWS):
            part = slice(start, start + _ROWS)
            q, p = (_log_softmax(logits[part]) for logits in (found, expected))
            self._klds.append(np.array((mx.exp(p) * (p - q)).sum(axis=-1)))
            self._agreements.append(np.array(p.argmax(axis=-1) == q.argmax(axis=-1)))
            following = window[start + 1 : start + _ROWS + 1]  # one fewer at the end of a window
            if following:
                rows, columns = mx.arange(len(following)), mx.array(following)
                self._losses.append(np.array(-q[rows, columns]))
                self._reference_losses.append(np.array(-p[rows, columns]))

    def evaluation(self, model: LanguageModel, tokens: int) -> Evaluation:
        kld = np.concatenate(self._klds).astype(np.float64)
        return Evaluation(
            model=str(model.path),
            nbytes=_text_bytes(model.path),
            tokens=tokens,
            perplexity=_perplexity(self._losses),
            reference_perplexity=_perplexity(self._reference_losses),
            kld_mean=float(kld.mean()),
            kld_median=float(np.median(kld)),
            kld_p999=float(np.quantile(kld, 0.999)),
            top1=float(np.concatenate(self._agreements).mean()),
        )


def _logits(model: LanguageModel, window: list[int], known: int) -> mx.array:
    logits = model.forward([window])[0, :, :known]
    mx.eval(logits)
    return logits


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _perplexity(losses: list[np.ndarray]) -> float:
    return float(np.exp(np.concatenate(losses).mean(dtype=np.float64)))


def _text_bytes(directory: Path) -> int:
    """Of the text model's tensors: what a size budget is about, whatever else lies in the directory."""
    return sum(group.nbytes for group in summarize(directory).text_groups)
