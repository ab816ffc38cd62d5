"""The importance of every matrix's inputs, measured: sums of x_k^2 over the tokens of calibration chunks.

Each chunk starts from an empty cache, as llama.cpp's ``llama-imatrix`` does it. What a matrix reads is what ``qmm``
multiplies it with, after the norm; sums are float32 within a chunk and float64 across chunks.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import mlx.core as mx
import numpy as np

from mlx_delta.checkpoint.atomic import atomic_file
from mlx_delta.conversion.imatrix_file import Calibration
from mlx_delta.errors import CheckpointError
from mlx_delta.language_model import LanguageModel
from mlx_delta.ops.matrix import Matrix
from mlx_delta.ops.qmm import observed_products

_SAVE_SECONDS = 20.0


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
    identity = _identity(model, chunks)
    done, sums = _restore(state, identity)
    saved = time.monotonic()
    try:
        for chunk in chunks[done:]:
            if progress is not None:
                progress(Progress(done, len(chunks)))
            found = _squares(model, chunk, names)
            # Together, so that an interrupt cannot fall between them and count a chunk twice.
            sums, done = {name: sums.get(name, 0) + values for name, values in found.items()}, done + 1
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(state, identity, done, sums)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(state, identity, done, sums)
        raise
    if progress is not None:
        progress(Progress(done, len(chunks)))
    return Calibration(sums, done, len(chunks[0]), tuple(datasets))


def _squares(model: LanguageModel, chunk: Sequence[int], names: dict[int, str]) -> dict[str, np.ndarray]:
    """Sums of x^2 over one chunk, float64 [K], by module."""
    seen: dict[str, mx.array] = {}

    def observe(x: mx.array, matrices: Sequence[Matrix], norm: mx.array | None, eps: float) -> None:
        h = x.astype(mx.float32)
        if norm is not None:
            h = mx.fast.rms_norm(h, norm, eps)
        squares = mx.square(h).reshape(-1, h.shape[-1]).sum(axis=0)
        seen.update((names[id(matrix)], squares) for matrix in matrices)

    x = mx.array(0)
    with observed_products(observe):
        for x in model.network.hidden_states(mx.array([list(chunk)]), model.make_cache()):
            mx.eval(x, *seen.values())  # layer by layer: what a layer makes is gone before the next
        observe(x, [model.network.lm_head], model.network.norm, model.config.text.rms_norm_eps)
    mx.eval(*seen.values())
    result = {name: np.array(squares, np.float64) for name, squares in seen.items()}
    for name, values in result.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{model.path}: {name}: expected finite inputs, found NaN or infinity")
    return result


def _identity(model: LanguageModel, chunks: Sequence[Sequence[int]]) -> str:
    """A hash of what a run depends on: config, weight files and activations' dtype of the model, and all tokens."""
    files = sorted(model.path.glob("*.safetensors"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    run = [dict(model.config.raw), stats, str(model.network.dtype), [list(chunk) for chunk in chunks]]
    return hashlib.sha256(json.dumps(run).encode()).hexdigest()


def _restore(state: Path | None, identity: str) -> tuple[int, dict[str, np.ndarray]]:
    """What an earlier run of the same identity had done; nothing when there was none."""
    if state is None or not state.is_file():
        return 0, {}
    try:
        with np.load(state) as stored:
            if str(stored["identity"]) != identity:
                return 0, {}
            sums = {name.removeprefix("sum:"): stored[name] for name in stored.files if name.startswith("sum:")}
            return int(stored["chunks"]), sums
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # a damaged one is as good as none
        return 0, {}


def _save(state: Path | None, identity: str, done: int, sums: dict[str, np.ndarray]) -> None:
    if state is None or not done:
        return
    arrays = {f"sum:{name}": values for name, values in sums.items()}
    with atomic_file(state, force=True) as partial, partial.open("wb") as stream:
        np.savez(stream, identity=np.array(identity), chunks=np.array(done), **arrays)  # type: ignore[arg-type]
