"""The conversion, top to bottom: source -> canonical names -> recipe -> AWQ or calibration -> quantize -> write."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_delta.arch.base import Architecture, Fold
from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.checkpoint.atomic import atomic_directory, write_file
from mlx_delta.checkpoint.safetensors import file_size, write_safetensors
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.config import Quantization
from mlx_delta.conversion.auto import Sensitivity, auto
from mlx_delta.conversion.awq import FoldGain, clean_importance, fold_layer
from mlx_delta.conversion.imatrix import Importance, check_importance, measured_channels, read_imatrix
from mlx_delta.conversion.moments import Feedback
from mlx_delta.conversion.quantize import encode
from mlx_delta.conversion.recipe import (
    Recipe,
    TensorPlan,
    check_recipe,
    choose,
    plan,
    quantization_section,
    with_overrides,
)
from mlx_delta.errors import ArgumentError, ConvertError, OutputError

_MODEL = "model.safetensors"
_CHECKED_VALUES = 1 << 18  # values looked at for NaN in one go
_INFINITY = {  # the bits of each dtype's infinity, and their type
    mx.bfloat16: (mx.uint16, 0x7F80),
    mx.float16: (mx.uint16, 0x7C00),
    mx.float32: (mx.uint32, 0x7F800000),
}


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: tensors and bytes of the output, and the tensor last written."""

    tensor: str
    tensors: int
    total_tensors: int
    nbytes: int
    total_nbytes: int


@dataclass(frozen=True)
class ComponentSummary:
    """One row of the closing table."""

    component: str
    bits: str  # "3", or the dtype of what is kept
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion made. ``bits_per_weight`` counts the text model, scales and biases included."""

    path: Path
    tensors: int
    bytes_written: int
    bytes_predicted: int
    bits_per_weight: float
    components: tuple[ComponentSummary, ...]
    folds: tuple[FoldGain, ...]
    warnings: tuple[str, ...]


class Calibration(Protocol):
    """What a run of the model on calibration text tells: ``calibrate.layers.LayerCalibration`` is one."""

    def begin(self, part: str, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]) -> None:
        """The tensors of a layer (its prefix) or one tensor (its name), and the widths of those to be quantized."""

    def feedback(self, module: str) -> Feedback | None:
        """By what a module of that part is rounded, asked for in the order of the model."""

    def became(self, module: str, arrays: Mapping[str, mx.array]) -> None:
        """What was written for it."""


@dataclass(frozen=True)
class _Options:
    awq_ratio: float | None
    awq: bool
    fit: bool
    calibration: Calibration | None

    @property
    def by_layer(self) -> bool:
        """Whether something ties the tensors of a layer together."""
        return self.awq or self.calibration is not None


def convert(
    source: Path | str,
    out: Path | str,
    *,
    quantize: bool = True,
    recipe: str | None = None,
    bits: int | None = None,
    group_size: int = 64,
    imatrix: Path | str | None = None,
    awq: bool = True,
    awq_ratio: float | None = None,
    fit: bool = True,
    overrides: Path | str | None = None,
    target_bpw: float | None = None,
    sensitivity: Sensitivity | None = None,
    calibration: Calibration | None = None,
    keep_mtp: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Convert a checkpoint to a new directory ``out`` that MLX, mlx-lm and this package load.

    source: a directory of safetensors, or a .gguf file. ``quantize`` False writes the canonical tensors in bfloat16.
    recipe: None (all linear layers and the embedding at ``bits``, 4 by default); "unsloth" (base ``bits``, 3 by
    default; needs ``imatrix``); "auto" (widths by ``sensitivity``, as calibrate.sensitivity measures it, such that the
    text model takes ``target_bpw`` bits a weight). overrides: a JSON file, pattern to width, before the recipe's rules.
    imatrix: with one the AWQ folds are searched and applied (``awq_ratio`` fixes their exponent, ``awq`` False leaves
    them out), and each group's scale and bias are fitted to what is important; without one the fit takes all inputs as
    equal. ``fit`` False is mx.quantize alone.
    calibration: each matrix makes up for what those before it lost, those that stay whole too, and rounding feeds its
    errors forward by all second moments of the inputs (convert.moments). AWQ gains nothing then, and is left out.
    ``keep_mtp`` writes the MTP head too, in bfloat16 where no override says otherwise; else it is dropped. ``dry_run``
    reports what would be written. ``force`` replaces an existing ``out``.

    ``out`` appears whole, at the end, or not at all.
    Raises: MlxDeltaError (ArgumentError, CheckpointError, ConfigError, ConvertError, ImatrixError, OutputError) naming
    the file, tensor or argument; OSError when the disk fails.
    """
    _check(quantize, recipe, bits, group_size, imatrix, overrides, target_bpw, calibration)
    if calibration is not None and not fit:
        raise ArgumentError("calibration: expected the fit with it, found fit=False")
    weighed = imatrix is not None and calibration is None
    options = _Options(_awq_ratio(weighed and awq, awq_ratio), weighed and awq, fit, calibration)
    checkpoint = open_checkpoint(Path(source))
    architecture = checkpoint.architecture
    tensors = _wanted(checkpoint, keep_mtp)
    chosen = Recipe((), None)
    if recipe == "auto":
        chosen = _auto(tensors, sensitivity, target_bpw, group_size, architecture)
    elif quantize:
        chosen = choose(recipe, bits, group_size, architecture.recipes)
    if overrides is not None:
        matrices = (
            name for name, tensor in tensors.items() if len(tensor.shape) == 2 and not name.startswith("vision_tower.")
        )
        chosen = with_overrides(chosen, Path(overrides), (name.removesuffix(".weight") for name in matrices))
    plans = plan(tensors.values(), chosen, architecture)
    importance, warnings = _importance(imatrix, checkpoint, plans)
    entries = [entry for each in plans for entry in each.entries]
    folds: list[FoldGain] = []
    labels = architecture.components.labels
    if dry_run:
        return _report(Path(out), plans, labels, 0, folds, warnings)

    with atomic_directory(Path(out), checkpoint.path, force) as directory:
        _check_space(directory, file_size(entries))
        arrays = _arrays(tensors, plans, importance, options, architecture.folds, folds)
        write_safetensors(directory / _MODEL, entries, _reported(arrays, plans, progress))
        written = (directory / _MODEL).stat().st_size
        for name, content in checkpoint.side_files().items():
            write_file(directory / name, content)
        # Last: a directory without config.json is no model to anyone.
        write_file(directory / "config.json", _config(checkpoint, plans, chosen))
    return _report(Path(out), plans, labels, written, folds, warnings)


def _report(
    out: Path,
    plans: Sequence[TensorPlan],
    labels: Sequence[str],
    written: int,
    folds: Sequence[FoldGain],
    warnings: tuple[str, ...],
) -> ConvertReport:
    entries = [entry for each in plans for entry in each.entries]
    return ConvertReport(
        path=out,
        tensors=len(entries),
        bytes_written=written,
        bytes_predicted=file_size(entries),
        bits_per_weight=_bits_per_weight(plans),
        components=_summary(plans, labels),
        folds=tuple(folds),
        warnings=warnings,
    )


def _check_space(directory: Path, nbytes: int) -> None:
    """Before the first byte, for a full disk is better found now than in an hour."""
    free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise OutputError(f"{directory.parent}: expected {nbytes} free bytes for {_MODEL}, found {free}")


def _check(
    quantize: bool,
    recipe: str | None,
    bits: int | None,
    group_size: int,
    imatrix: Path | str | None,
    overrides: Path | str | None,
    target: float | None,
    calibration: Calibration | None,
) -> None:
    given: dict[str, object] = {"recipe": recipe, "bits": bits, "imatrix": imatrix}
    given |= {"overrides": overrides, "target_bpw": target}
    if not quantize:
        for name, value in given.items():
            if value is not None:
                raise ArgumentError(f"{name}: expected it with quantize, found {value} and quantize=False")
        if calibration is not None:
            raise ArgumentError("calibration: expected it with quantize, found quantize=False")
        return
    if target is not None and recipe != "auto":
        raise ArgumentError(f"target_bpw: expected the recipe auto with it, found {recipe or 'no recipe'}")
    check_recipe(recipe, bits, group_size)
    if recipe == "unsloth" and imatrix is None and calibration is None:
        raise ArgumentError(
            "imatrix: expected one for the recipe unsloth (`mlx-delta imatrix` or llama.cpp's llama-imatrix make it), "
            "or a calibration, found neither"
        )


def _auto(
    tensors: Mapping[str, Tensor],
    sensitivity: Sensitivity | None,
    target: float | None,
    group: int,
    architecture: Architecture,
) -> Recipe:
    if target is None:
        raise ArgumentError("target_bpw: expected bits a weight of the text model for the recipe auto, found none")
    if sensitivity is None:
        raise ArgumentError("sensitivity: expected the matrices', measured, for the recipe auto, found none")
    return auto(tensors.values(), sensitivity, target, group, architecture)


def _awq_ratio(awq: bool, ratio: float | None) -> float | None:
    if ratio is None:
        return None
    if not 0 <= ratio <= 1:
        raise ArgumentError(f"awq_ratio: expected a number from 0 to 1, found {ratio}")
    if not awq:
        raise ArgumentError(f"awq_ratio: expected an imatrix with it, awq, and no calibration, found {ratio}")
    return ratio


def _wanted(checkpoint: Checkpoint, keep_mtp: bool) -> dict[str, Tensor]:
    """The tensors to convert: the text model's in its own order, the vision tower's by name, the MTP head's."""
    tensors = checkpoint.tensors
    quantized = [name for name in tensors if name.endswith(".scales")]
    if quantized or checkpoint.config.quantization:
        found = quantized[0] if quantized else "a quantization section in config.json"
        raise ConvertError(f"{checkpoint.path}: expected an unquantized checkpoint, found {found}")
    mtp = checkpoint.mtp_shapes() if keep_mtp else {}
    if keep_mtp and not mtp:
        raise ArgumentError(f"keep_mtp: expected mtp_num_hidden_layers in the config of {checkpoint.path}, found none")
    vision = sorted(name for name in tensors if name.startswith("vision_tower."))
    return {name: tensors[name] for name in (*checkpoint.shapes, *vision, *mtp)}


def _importance(
    imatrix: Path | str | None, checkpoint: Checkpoint, plans: Sequence[TensorPlan]
) -> tuple[Importance, tuple[str, ...]]:
    if imatrix is None:
        return {}, ()
    importance = read_imatrix(Path(imatrix), checkpoint.config)
    channels = measured_channels({p.name: p.shape for p in plans}, {p.name: p.quantization for p in plans})
    missing = check_importance(importance, channels, Path(imatrix))
    if not missing:
        return importance, ()
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return importance, (f"{imatrix}: {len(missing)} of {len(channels)} modules have no importance: {names}",)


def _arrays(
    tensors: Mapping[str, Tensor],
    plans: Sequence[TensorPlan],
    importance: Importance,
    options: _Options,
    folds: Sequence[Fold],
    gains: list[FoldGain],
) -> Iterator[tuple[str, mx.array]]:
    """Every output array in the order of ``plans``; what the folds gained is appended to ``gains``.

    Folds and calibration tie the tensors of a layer together, so with them a layer is in memory; else one tensor.
    """
    for prefix, group in groupby(plans, key=lambda p: _layer_prefix(p.name) if options.by_layer else p.name):
        members = list(group)
        arrays, known = {p.name: _load(tensors[p.name]) for p in members}, importance
        calibration = options.calibration
        if calibration is not None:
            widths = {p.module: p.quantization for p in members if p.quantization is not None}
            calibration.begin(prefix, arrays, widths)
        if options.awq and prefix != members[0].name:
            wide = {p.name: p.quantization for p in members}
            folded = fold_layer(prefix, arrays, wide, known, folds, options.awq_ratio)
            arrays, known = folded.arrays, folded.importance
            gains += folded.gains
        for each in members:
            values = known.get(each.module)
            cleaned = None if values is None else clean_importance(values)
            if calibration is None:
                yield from encode(each, arrays.pop(each.name), cleaned, options.fit)
                continue
            feedback = calibration.feedback(each.module)
            encoded = dict(encode(each, arrays.pop(each.name), cleaned, options.fit, feedback))
            del feedback  # the next may need its memory
            calibration.became(each.module, encoded)
            yield from encoded.items()
        mx.clear_cache()


def _layer_prefix(name: str) -> str:
    """``language_model.model.layers.3.`` of a layer's tensor; any other tensor is a group of its own."""
    head, layers, tail = name.partition("language_model.model.layers.")
    return name if not layers else f"{head}{layers}{tail.partition('.')[0]}."


def _load(tensor: Tensor) -> mx.array:
    """The tensor's array, read and found finite. Raises: ConvertError naming it."""
    array = tensor.load()
    mx.eval(array)
    if not _finite(array):
        raise ConvertError(f"{tensor.source_name}: expected finite weights, found NaN or infinity")
    return array


def _finite(array: mx.array) -> bool:
    """Whether no value is NaN or infinite: as integers, without their sign, those are the largest.

    By numpy in pieces that stay in cache: mx.isfinite takes 17 times as long, a quarter of a conversion.
    """
    if array.dtype not in _INFINITY:
        return True
    kind, infinity = _INFINITY[array.dtype]
    bits = np.array(array.reshape(-1).view(kind), copy=False)
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    pieces = (bits[start : start + _CHECKED_VALUES] for start in range(0, bits.size, _CHECKED_VALUES))
    return all(int((piece & magnitude).max()) < infinity for piece in pieces)


def _reported(
    arrays: Iterator[tuple[str, mx.array]], plans: Sequence[TensorPlan], progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, mx.array]]:
    """``arrays``, with ``progress`` called after each has been written."""
    total_tensors, total_nbytes = sum(len(p.entries) for p in plans), sum(p.nbytes for p in plans)
    nbytes = 0
    for count, (name, array) in enumerate(arrays, start=1):
        nbytes += array.nbytes
        yield name, array
        if progress is not None:
            progress(Progress(name, count, total_tensors, nbytes, total_nbytes))


def _config(checkpoint: Checkpoint, plans: Sequence[TensorPlan], recipe: Recipe) -> bytes:
    """The original config.json, with the widths under both names that loaders look for."""
    config = dict(checkpoint.config.raw)
    if recipe.base is not None:
        config["quantization"] = config["quantization_config"] = quantization_section(plans, recipe.base)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _bits_per_weight(plans: Sequence[TensorPlan]) -> float:
    text = [p for p in plans if p.component not in ("vision", "mtp")]
    return 8 * sum(p.nbytes for p in text) / sum(math.prod(p.shape) for p in text)


def _summary(plans: Sequence[TensorPlan], labels: Sequence[str]) -> tuple[ComponentSummary, ...]:
    rows: dict[tuple[int, str], list[TensorPlan]] = {}
    for each in plans:
        rows.setdefault((labels.index(each.component), each.width_label), []).append(each)
    return tuple(
        ComponentSummary(labels[index], bits, sum(len(p.entries) for p in row), sum(p.nbytes for p in row))
        for (index, bits), row in sorted(rows.items())
    )
