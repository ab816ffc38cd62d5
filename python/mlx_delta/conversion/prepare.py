"""A conversion that can be done: everything is looked at that is known before the first tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.chat.template import check_template
from mlx_delta.checkpoint.atomic import check_output_directory
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.conversion.arguments import Arguments
from mlx_delta.conversion.auto import Sensitivity, auto, check_target
from mlx_delta.conversion.imatrix import Importance, check_importance, measured_channels, read_imatrix, unseen_experts
from mlx_delta.conversion.recipe import Recipe, TensorPlan, choose, is_matrix, plan, with_overrides
from mlx_delta.errors import ArgumentError, ConvertError, TemplateError
from mlx_delta.json_files import parse_json
from mlx_delta.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that is going to be converted to ``out``.

    tensors: the text model's in its own order, the vision tower's by name, the MTP head's where it is kept.
    importance: what the imatrix says, {} without one. side_files: what goes along, file name -> content. notes: on what
    is missing of them, for who runs the result.
    """

    checkpoint: Checkpoint
    out: Path
    arguments: Arguments
    tensors: dict[str, Tensor]
    importance: Importance
    side_files: dict[str, bytes]
    notes: tuple[str, ...]
    force: bool

    def planned(self, sensitivity: Sensitivity | None) -> tuple[Recipe, tuple[TensorPlan, ...], tuple[str, ...]]:
        """The recipe, what it makes of each tensor, and warnings. sensitivity: for the recipe "auto".

        Raises: ArgumentError when ``sensitivity`` has other modules, or the target is out of its reach; ConvertError
        naming the file of overrides, or a tensor; ImatrixError.
        """
        arguments, architecture = self.arguments, self.checkpoint.architecture
        recipe = Recipe((), None)
        if arguments.recipe == "auto" and arguments.target_bpw is not None and sensitivity is not None:
            tensors, target = self.tensors.values(), arguments.target_bpw
            recipe = auto(tensors, sensitivity, target, arguments.group_size, architecture)
        elif arguments.quantize and arguments.recipe != "auto":
            recipe = choose(arguments.recipe, arguments.bits, arguments.group_size, architecture.recipes)
        if arguments.quantize:
            recipe = recipe.with_draft(arguments.group_size, architecture.recipes)
        if arguments.overrides is not None:
            recipe = with_overrides(recipe, arguments.overrides, self._modules())
        plans = plan(self.tensors.values(), recipe, architecture)
        return recipe, plans, self._warnings(plans)

    def _modules(self) -> list[str]:
        ours = [name for name in self.tensors if not name.startswith("vision_tower.")]
        return [name.removesuffix(".weight") for name in ours if is_matrix(self.tensors[name])]

    def _warnings(self, plans: Sequence[TensorPlan]) -> tuple[str, ...]:
        return (*self.notes, *self._without_importance(plans))

    def _without_importance(self, plans: Sequence[TensorPlan]) -> tuple[str, ...]:
        imatrix = self.arguments.imatrix
        if imatrix is None:
            return ()
        channels = measured_channels({p.name: p.shape for p in plans}, {p.name: p.quantization for p in plans})
        missing = check_importance(self.importance, channels, imatrix)
        notes = []
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            notes.append(f"{imatrix}: {len(missing)} of {len(channels)} modules have no importance: {names}")
        unseen, experts = unseen_experts(imatrix, self.checkpoint.config)
        if unseen:
            what = f"{imatrix}: {unseen} of {experts} experts were not seen"
            notes.append(f"{what}: they are rounded as without one")
        return tuple(notes)


def prepare(source: Path, out: Path, arguments: Arguments, *, force: bool = False, dry_run: bool = False) -> Prepared:
    """Open ``source`` and check all that can be: its tensors, the files that go along, the imatrix, ``overrides``, the
    recipe's fit to the model, that ``target_bpw`` can be reached, and that ``out`` can be made (but for a dry run).

    Raises: as ``convert``.
    """
    checkpoint = open_checkpoint(source)
    tensors = _wanted(checkpoint, arguments.keep_mtp)
    if not dry_run:
        check_output_directory(out, checkpoint.path, force)
    importance = {} if arguments.imatrix is None else read_imatrix(arguments.imatrix, checkpoint.config)
    side_files, notes = _side_files(checkpoint)
    prepared = Prepared(checkpoint, out, arguments, tensors, importance, side_files, notes, force)
    if arguments.recipe != "auto":
        prepared.planned(None)
        return prepared
    assert arguments.target_bpw is not None
    check_target(tensors.values(), arguments.target_bpw, arguments.group_size, checkpoint.architecture)
    if arguments.overrides is not None:  # which says more than the recipe
        replace(prepared, arguments=replace(arguments, recipe=None, target_bpw=None, measured=False)).planned(None)
    return prepared


def _side_files(checkpoint: Checkpoint) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files that go along, and what is to be said of them. What a converted model is run with is in order.

    Raises: TokenizerError, TemplateError, ConvertError naming the file.
    """
    files, path = checkpoint.side_files(), checkpoint.path
    directory = path if path.is_dir() else path.parent
    for name in files.keys() & _OBJECTS:
        parse_json(files[name], str(directory / name), ConvertError)
    templates = Tokenizer.of_checkpoint(checkpoint).chat_templates
    if not templates:
        return files, (f"{path}: expected a chat template, found none: what comes of it generates, and cannot chat",)
    for name, source in templates.items():
        try:
            check_template(source)
        except TemplateError as error:
            raise TemplateError(f"{path}: {name}: {error}") from error
    return files, ()


# Beside those that the tokenizer reads.
_OBJECTS = {
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
}


def _wanted(checkpoint: Checkpoint, keep_mtp: bool | None) -> dict[str, Tensor]:
    tensors = checkpoint.tensors
    quantized = [name for name in tensors if name.endswith(".scales")]
    if quantized or checkpoint.config.quantization:
        found = quantized[0] if quantized else "a quantization section in config.json"
        raise ConvertError(f"{checkpoint.path}: expected an unquantized checkpoint, found {found}")
    mtp = {} if keep_mtp is False else checkpoint.mtp_shapes() if keep_mtp else checkpoint.mtp_tensors()
    if keep_mtp and not mtp:
        raise ArgumentError(f"keep_mtp: expected mtp_num_hidden_layers in the config of {checkpoint.path}, found none")
    vision = sorted(name for name in tensors if name.startswith("vision_tower."))
    return {name: tensors[name] for name in (*checkpoint.shapes, *vision, *mtp)}
