"""The conversion, top to bottom: source -> canonical names -> recipe -> AWQ or calibration -> quantize -> write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_delta.arch.checkpoint import Checkpoint
from mlx_delta.checkpoint.atomic import atomic_directory, write_file
from mlx_delta.checkpoint.finite import read_finite
from mlx_delta.checkpoint.safetensors import file_size, write_safetensors
from mlx_delta.config import Quantization
from mlx_delta.conversion.arguments import Arguments
from mlx_delta.conversion.auto import Sensitivity
from mlx_delta.conversion.awq import FoldGain, clean_importance, fold_layer
from mlx_delta.conversion.moments import ExpertFeedback, Feedback
from mlx_delta.conversion.prepare import Prepared, prepare
from mlx_delta.conversion.quantize import encode
from mlx_delta.conversion.recipe import Recipe, TensorPlan, quantization_section
from mlx_delta.conversion.report import ConvertReport, report
from mlx_delta.errors import OutputError
from mlx_delta.hub.path import model_path
from mlx_delta.model.network import LAYERS
from mlx_delta.paths import expanded

_MODEL = "model.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: tensors and bytes of the output, and the tensor last written."""

    tensor: str
    tensors: int
    total_tensors: int
    nbytes: int
    total_nbytes: int


class Calibration(Protocol):
    """What a run of the model on calibration text tells: ``calibrate.layers.LayerCalibration`` is one."""

    def begin(self, part: str, arrays: Mapping[str, mx.array], widths: Mapping[str, Quantization]) -> None:
        """The tensors of a layer (its prefix) or one tensor (its name), and the widths of those to be quantized."""

    def feedback(self, module: str) -> Feedback | ExpertFeedback | None:
        """By what a module of that part is rounded, asked for in the order of the model."""

    def became(self, module: str, arrays: Mapping[str, mx.array]) -> None:
        """What was written for it."""


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
    keep_mtp: bool | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Convert a checkpoint to a new directory ``out`` that MLX, mlx-lm and this package load.

    source: a directory of safetensors, a .gguf file, or the name of either on the Hugging Face Hub. ``quantize`` False
    writes the canonical tensors in bfloat16.
    recipe: None (all linear layers and the embedding at ``bits``, 4 by default); "unsloth" (base ``bits``, 3 by
    default; needs ``imatrix``); "auto" (widths by ``sensitivity``, as calibrate.sensitivity measures it, such that the
    text model takes ``target_bpw`` bits a weight). overrides: a JSON file, pattern to width, before the recipe's rules.
    imatrix: with one the AWQ folds are searched and applied (``awq_ratio`` fixes their exponent, ``awq`` False leaves
    them out), and each group's scale and bias are fitted to what is important; without one the fit takes all inputs as
    equal. ``fit`` False is mx.quantize alone.
    calibration: each matrix makes up for what those before it lost, those that stay whole too, and rounding feeds its
    errors forward by all second moments of the inputs (convert.moments). AWQ gains nothing then, and is left out.
    ``keep_mtp`` None writes the MTP head where there is one, its matrices in the width that every recipe has for it;
    True wants one; False drops it. ``dry_run`` reports what would be written. ``force`` replaces an existing ``out``.

    ``out`` appears whole, at the end, or not at all.
    Raises: MlxDeltaError (ArgumentError, CheckpointError, ConfigError, ConvertError, ImatrixError, OutputError) naming
    the file, tensor or argument; OSError when the disk fails.
    """
    arguments = Arguments(
        quantize=quantize,
        recipe=recipe,
        bits=bits,
        group_size=group_size,
        imatrix=None if imatrix is None else expanded(imatrix, "imatrix"),
        awq=awq,
        awq_ratio=awq_ratio,
        fit=fit,
        overrides=None if overrides is None else expanded(overrides, "overrides"),
        target_bpw=target_bpw,
        keep_mtp=keep_mtp,
        calibrated=calibration is not None,
        measured=sensitivity is not None,
    )
    checkpoint = model_path(source, gguf=True)
    prepared = prepare(checkpoint, expanded(out, "out"), arguments, force=force, dry_run=dry_run)
    return run(prepared, sensitivity=sensitivity, calibration=calibration, dry_run=dry_run, progress=progress)


def run(
    prepared: Prepared,
    *,
    sensitivity: Sensitivity | None = None,
    calibration: Calibration | None = None,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Do it: ``convert``, from where everything has been checked. What ``Arguments`` promised has to be given."""
    checkpoint, out = prepared.checkpoint, prepared.out
    recipe, plans, warnings = prepared.planned(sensitivity)
    entries = [entry for each in plans for entry in each.entries]
    labels, gains = checkpoint.architecture.components.labels, list[FoldGain]()
    if dry_run:
        return report(out, plans, labels, 0, gains, warnings)

    with atomic_directory(out, checkpoint.path, prepared.force) as directory:
        _check_space(directory, file_size(entries))
        arrays = _arrays(prepared, plans, calibration, gains)
        write_safetensors(directory / _MODEL, entries, _reported(arrays, plans, progress))
        written = (directory / _MODEL).stat().st_size
        for name, content in prepared.side_files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            write_file(directory / name, content)
        # Last: a directory without config.json is no model to anyone.
        write_file(directory / "config.json", _config(checkpoint, plans, recipe))
    return report(out, plans, labels, written, gains, warnings)


def _check_space(directory: Path, nbytes: int) -> None:
    """Before the first byte, for a full disk is better found now than in an hour."""
    free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise OutputError(f"{directory.parent}: expected {nbytes} free bytes for {_MODEL}, found {free}")


def _arrays(
    prepared: Prepared, plans: Sequence[TensorPlan], calibration: Calibration | None, gains: list[FoldGain]
) -> Iterator[tuple[str, mx.array]]:
    """Every output array in the order of ``plans``; what the folds gained is appended to ``gains``.

    Folds and calibration tie the tensors of a layer together, so with them a layer is in memory; else one tensor.
    """
    arguments, folds = prepared.arguments, prepared.checkpoint.architecture.folds
    by_layer = arguments.folds or calibration is not None
    for prefix, group in groupby(plans, key=lambda p: _layer_prefix(p.name) if by_layer else p.name):
        members = list(group)
        arrays = read_finite([prepared.tensors[p.name] for p in members], prepared.checkpoint.path)
        known = prepared.importance
        if calibration is not None:
            calibration.begin(prefix, arrays, {p.module: p.quantization for p in members if p.quantization is not None})
        if arguments.folds and prefix != members[0].name:
            widths = {p.name: p.quantization for p in members}
            folded = fold_layer(prefix, arrays, widths, known, folds, arguments.awq_ratio)
            arrays, known = folded.arrays, folded.importance
            gains += folded.gains
        for each in members:
            values = known.get(each.module)
            cleaned = None if values is None else clean_importance(values)
            if calibration is None:
                yield from encode(each, arrays.pop(each.name), cleaned, arguments.fit)
                continue
            feedback = calibration.feedback(each.module)
            encoded = dict(encode(each, arrays.pop(each.name), cleaned, arguments.fit, feedback))
            del feedback  # the next may need its memory
            calibration.became(each.module, encoded)
            yield from encoded.items()
        mx.clear_cache()


def _layer_prefix(name: str) -> str:
    """``language_model.model.layers.3.`` of a layer's tensor; any other tensor is a group of its own."""
    head, layers, tail = name.partition(f"{LAYERS}.")
    return name if not layers else f"{head}{layers}{tail.partition('.')[0]}."


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
    """The original config.json: the widths under both names that loaders look for, no head that is not there."""
    config = dict(checkpoint.config.raw)
    if all(plan.component != "mtp" for plan in plans):
        config = _without_mtp(config)
    config.pop("quantization_config", None)  # of FP8 or NVFP4, which it no longer is
    if recipe.base is not None:
        config["quantization"] = config["quantization_config"] = quantization_section(plans, recipe.base)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _without_mtp(config: dict[str, Any]) -> dict[str, Any]:
    """What the config says of the MTP head, taken back: programs that read it would look for the head's tensors."""
    none = {"mtp_num_hidden_layers": 0}
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("mtp_num_hidden_layers"):
        config = {**config, "text_config": {**text, **none}}
    return {**config, **none} if config.get("mtp_num_hidden_layers") else config
