"""The second moments of every matrix's inputs, one layer at a time: what conversion feeds its errors forward by.

Conversion walks through a checkpoint from the embedding to lm_head and hands each part's tensors here before it
converts them. All calibration tokens go through the part as it is, unquantized, and what leaves it waits for the next:
so one layer's weights are in memory at a time, and the model runs once. A tied embedding is converted before anything
that it multiplies is known, so it gets no moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from mlx_delta.calibrate.chunks import CONTEXT, read_chunks
from mlx_delta.checkpoint.source import open_source
from mlx_delta.config import ModelConfig
from mlx_delta.convert.moments import Moments
from mlx_delta.load import source_tokenizer
from mlx_delta.model.cache import empty_state
from mlx_delta.model.layers import Window
from mlx_delta.model.qwen3_5 import layer_from_weights, layer_matrices
from mlx_delta.ops.embedding import embedding
from mlx_delta.ops.matrix import Matrix
from mlx_delta.ops.qmm import observed_products

CHUNKS = 128  # of 512 tokens; a quarter as many cost 1 % of the tiny model's divergence
_ROOT = "language_model."
_LAYERS = "language_model.model.layers."


def layer_calibration(
    source: Path | str,
    texts: Sequence[Path],
    *,
    context: int = CONTEXT,
    max_chunks: int = CHUNKS,
    progress: Callable[[int, int], None] | None = None,
) -> LayerCalibration:
    """What ``convert`` of ``source`` takes as calibration: the first chunks of ``texts``, as ``read_chunks`` cuts them.

    Raises: ValueError naming the argument or the file; OSError.
    """
    checkpoint = open_source(Path(source))
    return LayerCalibration(
        checkpoint.config, read_chunks(texts, source_tokenizer(checkpoint), context, max_chunks), progress
    )


class LayerCalibration:
    """A run of ``chunks`` (of equal length, each from an empty cache) through a model that comes in parts.

    progress: called with the chunks done, of all layers, and in all. Activations are bfloat16 between layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        chunks: Sequence[Sequence[int]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._config = config
        self._chunks = [mx.array([list(chunk)]) for chunk in chunks]
        self._states: list[mx.array] = []  # x [1, T, hidden] of each chunk, as it enters the next part
        self._norm: mx.array | None = None
        self._progress = progress

    def moments(self, part: str, arrays: Mapping[str, mx.array]) -> dict[str, Moments]:
        """Module -> moments of its inputs, for the matrices of the next part; those that read the same share theirs.

        part: a layer's prefix ("language_model.model.layers.0."), or one tensor's name; in the order of the model.
        Raises: ValueError naming the module whose inputs are not finite.
        """
        if part.startswith(_LAYERS):
            return self._layer(int(part.removeprefix(_LAYERS).partition(".")[0]), arrays)
        if part == f"{_ROOT}model.embed_tokens.weight":
            table = Matrix.plain(arrays[part])
            self._states = [embedding(chunk, table, mx.bfloat16) for chunk in self._chunks]
            mx.eval(self._states)
        elif part == f"{_ROOT}model.norm.weight":
            self._norm = arrays[part].astype(mx.float32)
        elif part == f"{_ROOT}lm_head.weight":
            return self._head(part.removesuffix(".weight"))
        return {}

    def _layer(self, index: int, arrays: Mapping[str, mx.array]) -> dict[str, Moments]:
        layer = layer_from_weights(self._config, arrays, index)
        names = {id(matrix): name for name, matrix in layer_matrices(index, layer)}
        found: dict[str, Moments] = {}

        def observe(x: mx.array, matrices: Sequence[Matrix], norm: mx.array | None, eps: float) -> None:
            modules = [names[id(matrix)] for matrix in matrices]
            sums = found.get(modules[0]) or Moments(x.shape[-1])
            found.update(dict.fromkeys(modules, sums))
            _add(sums, x, norm, eps, modules[0])

        kind, total = self._config.text.layer_types[index], len(self._chunks) * self._config.text.num_layers
        with observed_products(observe):
            for at, x in enumerate(self._states):
                self._states[at] = layer(x, empty_state(kind), Window(0))
                mx.eval(self._states[at])
                if self._progress is not None:
                    self._progress(index * len(self._chunks) + at + 1, total)
        return found

    def _head(self, module: str) -> dict[str, Moments]:
        assert self._norm is not None
        sums = Moments(self._config.text.hidden_size)
        while self._states:
            _add(sums, self._states.pop(), self._norm, self._config.text.rms_norm_eps, module)
        return {module: sums}


def _add(sums: Moments, x: mx.array, norm: mx.array | None, eps: float, module: str) -> None:
    h = x.astype(mx.float32)
    if norm is not None:
        h = mx.fast.rms_norm(h, norm, eps)
    if not mx.isfinite(h).all().item():
        raise ValueError(f"{module}: expected finite inputs, found NaN or infinity")
    sums.add(h.reshape(-1, h.shape[-1]))
