"""What every matrix reads, and what that lacks, one part of the model at a time: what conversion rounds by.

Conversion walks through a checkpoint from the embedding to lm_head. All calibration tokens walk along, twice: through
the original, and through what conversion has made of it so far. A matrix is rounded by the second moments of what it
reads in the quantized model, and its targets are those of the original: what inputs lack after the norm, and for the
two matrices of a layer that add to the residual stream also what the stream itself lacks (``Moments``). So each matrix
makes up for what those before it lost, as far as that can be told from its inputs.

One layer's weights are in memory at a time, and two activations a token. What a matrix reads within a layer is computed
again for each of the layer's stages rather than kept. A tied embedding is converted before anything that it
multiplies is known, so as lm_head it gets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.arch.registry import architecture_of
from mlx_delta.calibrate.chunks import CONTEXT, read_chunks
from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.conversion.moments import ORDER_BLOCK, ExpertFeedback, Feedback, Moments
from mlx_delta.errors import CheckpointError
from mlx_delta.hub.path import model_path
from mlx_delta.model.layers import Routing, normed
from mlx_delta.model.network import EMBEDDING, HEAD, LAYERS, NORM
from mlx_delta.ops.embedding import embedding
from mlx_delta.ops.matrix import Matrix
from mlx_delta.text.tokenizer import Tokenizer

CHUNKS = 128  # of 512 tokens
_STATE = mx.bfloat16  # between layers; within them activations are float32


def layer_calibration(
    source: Path | str | Checkpoint,
    texts: Sequence[Path],
    *,
    context: int = CONTEXT,
    max_chunks: int = CHUNKS,
    progress: Callable[[int, int], None] | None = None,
) -> LayerCalibration:
    """What ``convert`` of ``source`` takes as calibration: the first chunks of ``texts``, as ``read_chunks`` cuts them.

    Raises: ArgumentError; TextError naming the file; OSError.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(model_path(source, gguf=True))
    return LayerCalibration(
        checkpoint.config, read_chunks(texts, Tokenizer.of_checkpoint(checkpoint), context, max_chunks), progress
    )


class LayerCalibration:
    """A run of ``chunks`` (of equal length, each from an empty cache) through a model that comes in parts.

    For each part, in the order of the model, ``begin``; then for each of its tensors, in the order of the
    architecture's shapes, ``feedback`` and ``became``. progress: called with the chunks done, of all stages of all
    layers, and in all.
    """

    def __init__(
        self,
        config: ModelConfig,
        chunks: Sequence[Sequence[int]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._config = config
        self._chunks = [mx.array([list(chunk)]) for chunk in chunks]
        # x [1, T, hidden] of each chunk, in the original and in the quantized model.
        self._original: list[mx.array] = []
        self._quantized: list[mx.array] = []
        self._norm = mx.array(1.0)
        self._layer: _Layer | None = None
        self._widths: Mapping[str, Quantization] = {}
        self._found: tuple[Sequence[str], Feedback] | None = None  # and the matrices that share it
        self._done = 0
        self._progress = progress
        self._experts = 0 if config.text.experts is None else config.text.experts.count
        self._few = 0, 0  # experts of fewer tokens than columns, and all

    def begin(self, part: str, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]) -> None:
        """The tensors of the next part: a layer (its prefix, "language_model.model.layers.0."), or one (its name).

        widths: what its matrices are going to be, those that are quantized.
        """
        self._widths = widths
        if part.startswith(f"{LAYERS}."):
            index = int(part.removeprefix(f"{LAYERS}.").partition(".")[0])
            self._layer = _Layer(self._config, index, arrays, widths)
        elif part == f"{EMBEDDING}.weight":
            self._original = self._embedded(Matrix.plain(arrays[part]))
        elif part == f"{NORM}.weight":
            self._norm = arrays[part].astype(mx.float32)

    @property
    def notes(self) -> list[str]:
        """What is to be said of what was measured."""
        few, experts = self._few
        if not few:
            return []
        what = f"calibration: {few} of {experts} experts were chosen by fewer tokens than they have columns"
        return [f"{what}: what is made of their statistics is damped, down to none"]

    def feedback(self, module: str) -> Feedback | ExpertFeedback | None:
        """By what ``module`` is to be rounded; None for all but a layer's matrices and lm_head.

        Raises: CheckpointError naming the module whose inputs are not finite.
        """
        if self._found is not None and module in self._found[0]:
            return self._found[1]
        self._found = None  # its memory is needed
        if module == HEAD:
            moments = self._head()
            sharing: Sequence[str] = [module]
        elif self._layer is not None and self._layer.routing(module) is not None:
            return self._of_experts(self._layer, module)
        elif self._layer is not None and module in self._layer.matrices:
            sharing, moments = self._layer.sharing(module), self._measured(self._layer, module)
        else:
            return None
        if not moments.finite:
            raise CheckpointError(f"{module}: expected finite inputs, found NaN or infinity")
        groups = [self._widths[each].group_size for each in sharing if each in self._widths]
        self._found = sharing, moments.feedback(min([ORDER_BLOCK, *groups]))
        return self._found[1]

    def became(self, module: str, arrays: Mapping[str, mx.array]) -> None:
        """What was made of ``module``: its weight by name, with scales and biases where it is quantized."""
        if module == EMBEDDING:
            self._quantized = self._embedded(_matrix(module, arrays, self._widths.get(module)))
        elif self._layer is not None and module in self._layer.matrices:
            self._layer.replace(module, arrays)
            if not self._layer.adds(module):
                return
            self._found = None
            for at, x in enumerate(self._quantized):
                self._quantized[at] = self._layer.added(module, x)
                mx.eval(self._quantized[at])
            if self._layer.is_last(module):
                self._layer = None

    def _embedded(self, table: Matrix) -> list[mx.array]:
        states = [embedding(chunk, table, _STATE) for chunk in self._chunks]
        mx.eval(states)
        return states

    def _measured(self, layer: _Layer, module: str) -> Moments:
        """Of what ``module`` reads. Where it adds to the stream, the original's goes on."""
        rows, columns = layer.matrices[module].rows, layer.matrices[module].cols
        to_stream = layer.adds(module)
        moments = Moments(columns, rows if to_stream else None)
        for at, (original, quantized) in enumerate(zip(self._original, self._quantized, strict=True)):
            read, wanted = layer.reads(module, quantized, quantized=True), layer.reads(module, original)
            if to_stream:
                target = ops.qmm(wanted, (layer.matrices[module],), residual=layer.onto(module, original))
                before = layer.onto(module, quantized, quantized=True)
                lack = target - ops.qmm(read, (layer.matrices[module],), residual=before)
                self._original[at] = target.astype(_STATE)
                mx.eval(self._original[at])
            else:
                lack = wanted - read
            _add(moments, read, lack)
            self._progressed(layer, 1)
        return moments

    def _of_experts(self, layer: _Layer, module: str) -> ExpertFeedback:
        """Of each expert by the tokens that choose it in the quantized model, weighted as they weigh it.

        With few of them damping leaves little of the statistics, and with none nothing.
        """
        original, quantized = layer.routing(module), layer.routing(module, quantized=True)
        assert original is not None
        assert quantized is not None
        routes = [tuple(map(np.array, quantized.choose(x))) for x in self._quantized]
        columns, group = layer.matrices[module].cols, self._widths[module].group_size
        seen = np.bincount(np.concatenate([ids.reshape(-1) for ids, _ in routes]), minlength=self._experts)
        if module.endswith("gate_proj"):
            self._few = self._few[0] + int((seen < columns).sum()), self._few[1] + self._experts
        self._progressed(layer, len(self._chunks))

        def of(expert: int) -> Feedback:
            moments = Moments(columns)
            for (ids, weights), x, wanted in zip(routes, self._quantized, self._original, strict=True):
                tokens, slots = np.nonzero(ids[0] == expert)
                if not tokens.size:
                    continue
                at, weight = mx.array(tokens), mx.array(weights[0][tokens, slots])[:, None]
                read = quantized.reads(x[0, at], expert)
                _add(moments, weight * read, weight * (original.reads(wanted[0, at], expert) - read))
            if not moments.finite:
                raise CheckpointError(f"{module}: expected finite inputs, found NaN or infinity")
            return moments.feedback(min(ORDER_BLOCK, group))

        return ExpertFeedback(of)

    def _progressed(self, layer: _Layer, chunks: int) -> None:
        self._done += chunks
        if self._progress is not None:
            self._progress(self._done, len(self._chunks) * layer.stages * self._config.text.num_layers)

    def _head(self) -> Moments:
        moments, eps = Moments(self._config.text.hidden_size), self._config.text.rms_norm_eps
        while self._original:
            wanted, read = (normed(states.pop(), self._norm, eps) for states in (self._original, self._quantized))
            _add(moments, read, wanted - read)
        return moments


class _Layer:
    """A layer as it was, and as it is becoming. Modules go by their full names."""

    def __init__(
        self, config: ModelConfig, index: int, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]
    ) -> None:
        self._config, self._index = replace(config, quantization=widths), index
        self._arrays = dict(arrays)
        self._prefix = f"{LAYERS}.{index}."
        self._build = architecture_of(config).layer
        self._original = self._build(replace(config, quantization={}), arrays, index).stages()
        self._quantized = self._original
        self.stages = len(self._original)
        self._stage_of = {
            f"{self._prefix}{name}": at for at, stage in enumerate(self._original) for name in stage.matrices
        }
        self.matrices = {
            f"{self._prefix}{name}": matrix for stage in self._original for name, matrix in stage.matrices.items()
        }

    def sharing(self, module: str) -> Sequence[str]:
        """The matrices that read what ``module`` does."""
        return [name for name, at in self._stage_of.items() if at == self._stage_of[module]]

    def adds(self, module: str) -> bool:
        """Whether it adds to the residual stream."""
        return self._original[self._stage_of[module]].adds

    def is_last(self, module: str) -> bool:
        return self._stage_of[module] == self.stages - 1

    def replace(self, module: str, arrays: Mapping[str, mx.array]) -> None:
        self._arrays.update(arrays)
        self._quantized = self._build(self._config, self._arrays, self._index).stages()

    def reads(self, module: str, x: mx.array, quantized: bool = False) -> mx.array:
        """What ``module`` reads, float32 [1, T, K], from the residual stream x where its stage of the layer begins."""
        return (self._quantized if quantized else self._original)[self._stage_of[module]].reads(x)

    def routing(self, module: str, quantized: bool = False) -> Routing | None:
        """Of a module of experts."""
        at = self._stage_of.get(module)
        return None if at is None else (self._quantized if quantized else self._original)[at].routing

    def onto(self, module: str, x: mx.array, quantized: bool = False) -> mx.array:
        """To what, float32, of the residual stream x the product of ``module`` is added."""
        return (self._quantized if quantized else self._original)[self._stage_of[module]].onto(x)

    def added(self, module: str, x: mx.array) -> mx.array:
        """The residual stream x of the quantized model after ``module`` has added to it."""
        matrix = self._quantized[self._stage_of[module]].matrices[module.removeprefix(self._prefix)]
        y = ops.qmm(self.reads(module, x, quantized=True), (matrix,), residual=self.onto(module, x, quantized=True))
        return y.astype(_STATE)


def _matrix(module: str, arrays: Mapping[str, mx.array], width: Quantization | None) -> Matrix:
    weight = arrays[f"{module}.weight"]
    if width is None:
        return Matrix.plain(weight)
    return Matrix.affine(weight, arrays[f"{module}.scales"], arrays[f"{module}.biases"], width.bits, width.group_size)


def _add(moments: Moments, read: mx.array, lack: mx.array) -> None:
    moments.add(read.reshape(-1, read.shape[-1]), lack.reshape(-1, lack.shape[-1]))
