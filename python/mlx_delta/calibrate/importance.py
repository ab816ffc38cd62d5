"""The importance of every matrix's inputs, measured: sums of x_k^2 over the tokens of calibration chunks.

Each chunk starts from an empty cache, as llama.cpp's ``llama-imatrix`` does it. What a matrix reads is what ``qmm``
multiplies it with, after the norm; sums are float32 within a chunk and float64 across chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta.calibrate.resume import Resumable
from mlx_delta.conversion.imatrix_file import Calibration
from mlx_delta.errors import CheckpointError
from mlx_delta.language_model import LanguageModel
from mlx_delta.ops.experts import expert_rows, observed_experts
from mlx_delta.ops.matrix import Matrix
from mlx_delta.ops.qmm import observed_products, qmm

# Beside the sums, which go by modules' names: chunks, and after a name how many tokens each of its experts had.
_CHUNKS, COUNTS = ":chunks", ":counts"


@dataclass(frozen=True)
class Progress:
    """Chunks done (those of an earlier run included), and in all."""

    chunks: int
    total: int


def measure_importance(
    model: LanguageModel,
    chunks: Sequence[Sequence[int]],
    datasets: Sequence[str] = (),
    *,
    state: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Calibration:
    """Run ``chunks``, of equal length, through ``model``: the sums of every matrix, by canonical module name.

    state: a file that keeps what is done, every 20 seconds and when interrupted; a run of the same model and chunks
    that finds it goes on there, and ends with the same bits as one that was never interrupted. The caller removes it.
    Raises: CheckpointError naming the module whose inputs are not finite.
    """
    names = {id(matrix): name for name, matrix in model.network.matrices()}
    resumable = Resumable(state, model, chunks)
    sums = resumable.restore()
    done = int(sums.pop(_CHUNKS, np.array(0)))
    with resumable.keeping(lambda: {**sums, _CHUNKS: np.array(done)} if done else {}) as tick:
        for chunk in chunks[done:]:
            if progress is not None:
                progress(Progress(done, len(chunks)))
            found = _squares(model, chunk, names)
            # Together, so that an interrupt cannot fall between them and count a chunk twice.
            sums, done = {name: sums.get(name, 0) + values for name, values in found.items()}, done + 1
            tick()
    if progress is not None:
        progress(Progress(done, len(chunks)))
    counts = {name.removesuffix(COUNTS): values for name, values in sums.items() if name.endswith(COUNTS)}
    sums = {name: values for name, values in sums.items() if not name.endswith(COUNTS)}
    return Calibration(sums, done, len(chunks[0]), tuple(datasets), counts)


@dataclass(frozen=True)
class ExpertSquares:
    """Of one call of ``experts``: sums of x^2 [E, K] of what gate, up and down read; the tokens of each expert [E]."""

    squares: tuple[mx.array, mx.array, mx.array]
    tokens: mx.array


def expert_squares(
    x: mx.array, chosen: mx.array, matrices: Sequence[Matrix], norm: mx.array, eps: float
) -> ExpertSquares:
    rows, ids = x.reshape(-1, x.shape[-1]), np.array(chosen).reshape(-1, chosen.shape[-1])
    count = matrices[2].rows // rows.shape[1]
    read = mx.zeros((count, rows.shape[1]))
    inner = mx.zeros((count, matrices[2].cols))
    for e in range(count):
        tokens = np.flatnonzero((ids == e).any(axis=1))
        if not tokens.size:
            continue
        mine = rows[mx.array(tokens)].astype(mx.float32)
        gate, up, _ = expert_rows(matrices, e, count)
        read[e] = mx.square(mx.fast.rms_norm(mine, norm, eps)).sum(axis=0)
        inner[e] = mx.square(qmm(mine, (gate, up), norm=norm, eps=eps, activation="swiglu")).sum(axis=0)
    mx.eval(read, inner)
    return ExpertSquares((read, read, inner), mx.array(np.bincount(ids.reshape(-1), minlength=count)))


def _squares(model: LanguageModel, chunk: Sequence[int], names: dict[int, str]) -> dict[str, np.ndarray]:
    """Sums of x^2 over one chunk, float64 [K], by module."""
    seen: dict[str, mx.array] = {}

    def observe(x: mx.array, matrices: Sequence[Matrix], norm: mx.array | None, eps: float) -> None:
        h = x.astype(mx.float32)
        if norm is not None:
            h = mx.fast.rms_norm(h, norm, eps)
        squares = mx.square(h).reshape(-1, h.shape[-1]).sum(axis=0)
        # Parts of an expert are looked at by themselves.
        seen.update((names[id(matrix)], squares) for matrix in matrices if id(matrix) in names)

    def observe_experts(
        x: mx.array,
        chosen: mx.array,
        matrices: Sequence[Matrix],
        shared: Sequence[Matrix],
        norm: mx.array,
        eps: float,
    ) -> None:
        qmm(qmm(x, shared[:2], norm=norm, eps=eps, activation="swiglu"), shared[2:])  # which is observed
        found = expert_squares(x, chosen, matrices, norm, eps)
        seen.update((names[id(matrix)], squares) for matrix, squares in zip(matrices, found.squares, strict=True))
        seen.update((names[id(matrix)] + COUNTS, found.tokens) for matrix in matrices)

    x = mx.array(0)
    with observed_products(observe), observed_experts(observe_experts):
        for x in model.network.hidden_states(mx.array([list(chunk)]), model.make_cache()):
            mx.eval(x, *seen.values())  # layer by layer: what a layer makes is gone before the next
        observe(x, [model.network.lm_head], model.network.norm, model.config.text.rms_norm_eps)
    mx.eval(*seen.values())
    result = {name: np.array(squares, np.float64) for name, squares in seen.items()}
    for name, values in result.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{model.path}: {name}: expected finite inputs, found NaN or infinity")
    return result
