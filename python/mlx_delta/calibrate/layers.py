"""What every matrix reads, and what that lacks, one part of the model at a time: what conversion rounds by.

Conversion walks through a checkpoint from the embedding to lm_head. All calibration tokens walk along, twice: through
the original, and through what conversion has made of it so far. A matrix is rounded by the second moments of what it
reads in the quantized model, and its targets are those of the original: what inputs lack after the norm, and for the
two matrices of a layer that add to the residual stream also what the stream itself lacks (``Moments``). So each matrix
makes up for what those before it lost, as far as that can be told from its inputs.

One layer's weights are in memory at a time, and two activations a token. What a matrix reads within a layer is computed
again for each of the layer's four parts rather than kept. A tied embedding is converted before anything that it
multiplies is known, so as lm_head it gets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.calibrate.chunks import CONTEXT, read_chunks
from mlx_delta.checkpoint.source import open_source
from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.conversion.moments import ORDER_BLOCK, Feedback, Moments
from mlx_delta.errors import CheckpointError
from mlx_delta.loading import source_tokenizer
from mlx_delta.model.cache import empty_state
from mlx_delta.model.layers import Window
from mlx_delta.model.qwen3_5 import layer_from_weights, layer_matrices
from mlx_delta.ops.embedding import embedding
from mlx_delta.ops.matrix import Matrix

CHUNKS = 128  # of 512 tokens
_ROOT = "language_model."
_EMBEDDING, _NORM, _HEAD = f"{_ROOT}model.embed_tokens", f"{_ROOT}model.norm", f"{_ROOT}lm_head"
_LAYERS = f"{_ROOT}model.layers."
_PARTS = 4  # of a layer, whose matrices read the same
_TO_STREAM = (".out_proj", ".o_proj", ".down_proj")  # the matrices that add to the residual stream
_LAST = ".down_proj"
_STATE = mx.bfloat16  # between layers; within them activations are float32


def layer_calibration(
    source: Path | str,
    texts: Sequence[Path],
    *,
    context: int = CONTEXT,
    max_chunks: int = CHUNKS,
    progress: Callable[[int, int], None] | None = None,
) -> LayerCalibration:
    """What ``convert`` of ``source`` takes as calibration: the first chunks of ``texts``, as ``read_chunks`` cuts them.

    Raises: ArgumentError; TextError naming the file; OSError.
    """
    checkpoint = open_source(Path(source))
    return LayerCalibration(
        checkpoint.config, read_chunks(texts, source_tokenizer(checkpoint), context, max_chunks), progress
    )


class LayerCalibration:
    """A run of ``chunks`` (of equal length, each from an empty cache) through a model that comes in parts.

    For each part, in the order of the model, ``begin``; then for each of its tensors, in the order of
    ``expected_shapes``, ``feedback`` and ``became``. progress: called with the chunks done, of all parts of all layers,
    and in all.
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
        self._done, self._total = 0, len(self._chunks) * _PARTS * config.text.num_layers
        self._progress = progress

    def begin(self, part: str, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]) -> None:
        """The tensors of the next part: a layer (its prefix, "language_model.model.layers.0."), or one (its name).

        widths: what its matrices are going to be, those that are quantized.
        """
        self._widths = widths
        if part.startswith(_LAYERS):
            index = int(part.removeprefix(_LAYERS).partition(".")[0])
            self._layer = _Layer(self._config, index, arrays, widths)
        elif part == f"{_EMBEDDING}.weight":
            self._original = self._embedded(Matrix.plain(arrays[part]))
        elif part == f"{_NORM}.weight":
            self._norm = arrays[part].astype(mx.float32)

    def feedback(self, module: str) -> Feedback | None:
        """By what ``module`` is to be rounded; None for all but a layer's matrices and lm_head.

        Raises: CheckpointError naming the module whose inputs are not finite.
        """
        if self._found is not None and module in self._found[0]:
            return self._found[1]
        self._found = None  # its memory is needed
        if module == _HEAD:
            moments = self._head()
            sharing: Sequence[str] = [module]
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
        if module == _EMBEDDING:
            self._quantized = self._embedded(_matrix(module, arrays, self._widths.get(module)))
        elif self._layer is not None and module in self._layer.matrices:
            self._layer.replace(module, arrays)
            if not module.endswith(_TO_STREAM):
                return
            self._found = None
            for at, x in enumerate(self._quantized):
                self._quantized[at] = self._layer.added(module, x)
                mx.eval(self._quantized[at])
            if module.endswith(_LAST):
                self._layer = None

    def _embedded(self, table: Matrix) -> list[mx.array]:
        states = [embedding(chunk, table, _STATE) for chunk in self._chunks]
        mx.eval(states)
        return states

    def _measured(self, layer: _Layer, module: str) -> Moments:
        """Of what ``module`` reads. Where it adds to the stream, the original's goes on."""
        rows, columns = layer.matrices[module].rows, layer.matrices[module].cols
        to_stream = module.endswith(_TO_STREAM)
        moments = Moments(columns, rows if to_stream else None)
        for at, (original, quantized) in enumerate(zip(self._original, self._quantized, strict=True)):
            read, wanted = layer.reads(module, quantized, quantized=True), layer.reads(module, original)
            if to_stream:
                target = ops.qmm(wanted, (layer.matrices[module],), residual=original.astype(mx.float32))
                lack = target - ops.qmm(read, (layer.matrices[module],), residual=quantized.astype(mx.float32))
                self._original[at] = target.astype(_STATE)
                mx.eval(self._original[at])
            else:
                lack = wanted - read
            _add(moments, read, lack)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        return moments

    def _head(self) -> Moments:
        moments, eps = Moments(self._config.text.hidden_size), self._config.text.rms_norm_eps
        while self._original:
            wanted, read = (_normed(states.pop(), self._norm, eps) for states in (self._original, self._quantized))
            _add(moments, read, wanted - read)
        return moments


class _Layer:
    """A layer as it was, and as it is becoming."""

    def __init__(
        self, config: ModelConfig, index: int, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]
    ) -> None:
        self._config, self._index = replace(config, quantization=widths), index
        self._arrays = dict(arrays)
        self._original = layer_from_weights(replace(config, quantization={}), arrays, index)
        self._quantized = self._original
        self.matrices = dict(layer_matrices(index, self._original))

    def sharing(self, module: str) -> Sequence[str]:
        """The matrices that read what ``module`` does."""
        *mixer, output, gate, up, down = self.matrices
        return next(part for part in (mixer, [output], [gate, up], [down]) if module in part)

    def replace(self, module: str, arrays: Mapping[str, mx.array]) -> None:
        self._arrays.update(arrays)
        self._quantized = layer_from_weights(self._config, self._arrays, self._index)

    def reads(self, module: str, x: mx.array, quantized: bool = False) -> mx.array:
        """What ``module`` reads, float32 [1, T, K], from the residual stream x where its part of the layer begins."""
        layer, eps = self._quantized if quantized else self._original, self._config.text.rms_norm_eps
        x = x.astype(mx.float32)
        *_, output, gate, up, down = self.matrices
        if module == output:
            return layer.mix(x, empty_state(self._config.text.layer_types[self._index]), Window(0))
        if module == down:
            return layer.mlp.activations(x, eps)
        return _normed(x, layer.mlp.norm if module in (gate, up) else layer.norm, eps)

    def added(self, module: str, x: mx.array) -> mx.array:
        """The residual stream x of the quantized model after ``module`` has added to it."""
        matrix = dict(layer_matrices(self._index, self._quantized))[module]
        y = ops.qmm(self.reads(module, x, quantized=True), (matrix,), residual=x.astype(mx.float32))
        return y.astype(_STATE)


def _matrix(module: str, arrays: Mapping[str, mx.array], width: Quantization | None) -> Matrix:
    weight = arrays[f"{module}.weight"]
    if width is None:
        return Matrix.plain(weight)
    return Matrix.affine(weight, arrays[f"{module}.scales"], arrays[f"{module}.biases"], width.bits, width.group_size)


def _normed(x: mx.array, norm: mx.array, eps: float) -> mx.array:
    return mx.fast.rms_norm(x.astype(mx.float32), norm, eps)


def _add(moments: Moments, read: mx.array, lack: mx.array) -> None:
    moments.add(read.reshape(-1, read.shape[-1]), lack.reshape(-1, lack.shape[-1]))
