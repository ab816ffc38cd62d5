"""How far a model's predictions move when one matrix alone is quantized: what the recipe ``auto`` chooses widths by.

For each matrix the KL divergence from the model as it is, over calibration chunks, with the matrix at 3 bits. To
leading order the divergence is quadratic in the error of the weights, so at other widths it is

    KLD(bits) = KLD(3) * error(bits) / error(3),    error: sum importance_k (w_nk - Q(w)_nk)^2.

A run goes from the matrix's own layer on, with the states that enter it kept, which halves the work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta.arch.registry import architecture_of
from mlx_delta.calibrate.resume import Resumable
from mlx_delta.config import Quantization
from mlx_delta.conversion.awq import clean_importance, weighted_error
from mlx_delta.conversion.fit import fit
from mlx_delta.conversion.imatrix import Importance
from mlx_delta.conversion.recipe import WIDTHS
from mlx_delta.errors import ArgumentError, CheckpointError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from mlx_delta.model.layers import Window
from mlx_delta.model.network import EMBEDDING, HEAD, LAYERS, Network
from mlx_delta.ops.matrix import Matrix

CHUNKS = 4
_BITS = 3  # coarse enough to stand out, fine enough for the square
_POSITIONS = 1024  # of all chunks, whose predictions are compared: the vocabulary is a quarter of a million wide


def measure_sensitivity(
    model: LanguageModel,
    chunks: Sequence[Sequence[int]],
    importance: Importance,
    group_size: int = 64,
    *,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[int, float]]:
    """Module -> bits -> mean KLD over positions of ``chunks`` (of equal length), for every matrix worth a choice.

    importance: by module, for the fit; modules without have all inputs equal. progress: modules done, and in all.
    state: a file that keeps what is done, every 20 seconds and when interrupted; the same run that finds it goes on
    there. The caller removes it.
    Raises: ArgumentError when the model is quantized.
    """
    network, tokens = model.network, mx.array([list(chunk) for chunk in chunks])
    targets = list(_targets(network, architecture_of(model.config).recipes.fixed))
    quantized = next((name for name, matrix in targets if matrix.bits), None)
    if quantized is not None:
        raise ArgumentError(f"model: expected an unquantized one, found {model.path} with {quantized} quantized")
    states = []
    for x in network.hidden_states(tokens, Cache.empty(network.config)):
        mx.eval(x)
        states.append(x)
    known = model.tokenizer.vocab_size
    reference = _predictions(network, states[-1], known)
    used = hashlib.sha256()
    for name, values in sorted(importance.items()):
        used.update(name.encode() + values.tobytes())
    resumable = Resumable(state, model, chunks, ["sensitivity", group_size, used.hexdigest()])
    widths = sorted(WIDTHS)
    klds = resumable.restore()
    with resumable.keeping(lambda: klds) as tick:
        for done, (name, matrix) in enumerate(targets):
            if progress is not None:
                progress(done, len(targets))
            if name in klds:
                continue
            h = importance.get(name)
            weights = np.ones(matrix.cols, np.float32) if h is None else clean_importance(h)
            pooled = weights.reshape(-1, matrix.cols).mean(axis=0)  # of experts all together
            changed = _substituted(network, matrix, _quantized(matrix, weights, group_size))
            found = _predictions(changed, _last_state(changed, name, tokens, states), known)
            kld = float(np.array((mx.exp(reference) * (reference - found)).sum(axis=-1).mean()))
            if not math.isfinite(kld):
                raise CheckpointError(f"{model.path}: {name}: expected finite predictions, found NaN or infinity")
            errors = {bits: weighted_error(matrix.weight, Quantization(bits, group_size), pooled) for bits in widths}
            at = [max(0.0, kld) * errors[bits] / errors[_BITS] if errors[_BITS] else 0.0 for bits in widths]
            klds = {**klds, name: np.array(at)}
            tick()
    if progress is not None:
        progress(len(targets), len(targets))
    return {name: dict(zip(widths, klds[name].tolist(), strict=True)) for name, _ in targets}


def _targets(network: Network, fixed: tuple[str, ...]) -> Iterator[tuple[str, Matrix]]:
    """The matrices to choose a width for: all that a token reads, and the embedding."""
    if network.lm_head is not network.embed_tokens:
        yield EMBEDDING, network.embed_tokens
    yield from ((name, matrix) for name, matrix in network.matrices() if not name.endswith(fixed))


def _quantized(matrix: Matrix, importance: np.ndarray, group_size: int) -> Matrix:
    """importance: [K], or each expert's [E, K]."""
    width, experts = Quantization(_BITS, group_size), importance.reshape(-1, matrix.cols)
    rows = matrix.weight.reshape(experts.shape[0], -1, matrix.cols)
    found = [fit(rows[e], width, experts[e]) for e in range(experts.shape[0])]
    packed = mx.concatenate([each.packed for each in found])
    scales, biases = mx.concatenate([each.scales for each in found]), mx.concatenate([each.biases for each in found])
    return Matrix.affine(packed, scales, biases, _BITS, group_size)


def _substituted(part: Any, old: Matrix, new: Matrix) -> Any:
    """``part``, a network or a piece of one, with ``new`` wherever it holds ``old``."""
    if part is old:
        return new
    if isinstance(part, tuple):
        return tuple(_substituted(each, old, new) for each in part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: _substituted(getattr(part, f.name), old, new) for f in fields(part)})
    return part


def _last_state(network: Network, module: str, tokens: mx.array, states: Sequence[mx.array]) -> mx.array:
    """x as it leaves the last layer; ``states`` are right up to the layer of ``module``."""
    if module.startswith(HEAD):
        return states[-1]
    cache = Cache.empty(network.config)
    if not module.startswith(f"{LAYERS}."):
        return list(network.hidden_states(tokens, cache))[-1]
    index = int(module.split(".")[3])
    x = states[index]
    for layer, state in zip(network.layers[index:], cache.layers[index:], strict=True):
        x = layer(x, state, Window(0))
    return x


def _predictions(network: Network, x: mx.array, known: int) -> mx.array:
    """log p [P, V] at evenly spaced positions of x [C, T, hidden], the vocabulary's padding left out."""
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, rows.shape[0] // _POSITIONS)
    logits = network.logits(rows[None, ::step])[0, :, :known].astype(mx.float32)
    result = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(result)
    return result
