"""sample: the next token of each row of logits."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlx_delta import _core


def sample(
    logits: mx.array,
    random: mx.array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    allowed: mx.array | None = None,
    prompt: mx.array | None = None,
    generated: mx.array | None = None,
    presence_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """A token for each row: the likeliest, or the one that 64 random bits point to.

    In float32, x = logits. Where ``prompt`` or ``generated``, x becomes x / repetition_penalty if positive
    and x * repetition_penalty if not; where ``generated``, presence_penalty is subtracted; where not ``allowed``, x is
    -inf. Then x / temperature. Kept are, in the order of descending x and, of equals, ascending id: the first
    ``top_k``; of these, those that less than ``top_p`` of the mass of exp(x) lies before; of these, those with
    x >= max(x) + log(min_p). With the parts of exp(x) of what is kept laid end to end by ascending id, the token is the
    one at the point random / 2^64 of their sum.

    Masses are integers, in 2^-43 of the likeliest token's: a draw does not depend on the number of threads.

    Args:
        logits: [B, V] float32, float16 or bfloat16.
        random: uint64 [B], uniform; None takes the first token of the order, whatever the filters.
        temperature: > 0. top_k: 0 is off. top_p: in (0, 1], 1 is off. min_p: in [0, 1], 0 is off.
        allowed, prompt, generated: bool [B, N], or [1, N] for all rows.
        vocab_size: N, the columns that are tokens, at most 2^20; None: all.

    Returns: int32 [B], from 0 to N - 1; 0 for a row of nothing but -inf, -1 for one with a NaN among the N.
    Raises: ValueError naming the argument.
    """
    return _core.sample(
        logits,
        random,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        allowed=allowed,
        prompt=prompt,
        generated=generated,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        vocab_size=vocab_size,
        stream=stream,
    )


def sample_reference(
    logits: mx.array,
    random: mx.array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    allowed: mx.array | None = None,
    prompt: mx.array | None = None,
    generated: mx.array | None = None,
    presence_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
) -> mx.array:
    """``sample`` by sorting, and in float64 from the masses on: numpy, for a GPU has no float64."""
    x = adjusted_logits(logits, allowed, prompt, generated, presence_penalty, repetition_penalty, vocab_size)
    broken = np.isnan(np.array(logits[:, :vocab_size].astype(mx.float32))).any(axis=-1)
    if random is None:
        return mx.array(np.where(broken, -1, x.argmax(axis=-1)).astype(np.int32))
    tokens = []
    for row, bits, nan in zip(x / np.float32(temperature), np.array(random), broken, strict=True):
        if nan:
            tokens.append(-1)
            continue
        ids, mass = kept_tokens(row, top_k, top_p, min_p)
        tokens.append(ids[np.searchsorted(mass.cumsum(), float(bits) / 2**64 * mass.sum(), side="right")])
    return mx.array(np.array(tokens, dtype=np.int32))


def adjusted_logits(
    logits: mx.array,
    allowed: mx.array | None,
    prompt: mx.array | None,
    generated: mx.array | None,
    presence_penalty: float,
    repetition_penalty: float,
    vocab_size: int | None,
) -> np.ndarray:
    """x of ``sample`` before the temperature: float32 [B, N]."""
    x = np.array(logits[:, :vocab_size].astype(mx.float32))
    x[np.isnan(x)] = -np.inf

    def where(mask: mx.array | None) -> np.ndarray:
        return np.broadcast_to(np.array(False if mask is None else mask), x.shape)

    p = np.float32(repetition_penalty)
    x = np.where(where(prompt) | where(generated), np.where(x > 0, x / p, x * p), x)
    x = x - np.float32(presence_penalty) * where(generated)
    return x if allowed is None else np.where(where(allowed), x, np.float32(-np.inf))


def kept_tokens(row: np.ndarray, top_k: int, top_p: float, min_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Of one row of logits over the temperature, the ids that the filters keep, ascending, and their exp(x - max)."""
    order = np.argsort(-row, kind="stable")[: top_k or None]
    mass = np.exp(row[order].astype(np.float64) - row.max())
    if top_p < 1:
        before = mass.cumsum() - mass
        order = order[before < top_p * mass.sum()]
    if min_p > 0:
        order = order[row[order] >= row.max() + np.float32(math.log(min_p))]
    ids = np.sort(order)
    return ids, np.exp(row[ids].astype(np.float64) - row.max())
