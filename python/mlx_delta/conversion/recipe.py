"""Recipes: how wide each matrix becomes, and the plan that follows from one.

A recipe is an ordered list of (module pattern, width); a module that no pattern matches stays bfloat16. Everything is
affine: w = scale * q + bias per group along K, so a matrix [N, K] takes N * K * bits / 8 bytes packed and 2 * 2 * N *
K / group bytes of bfloat16 scales and biases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import mlx.core as mx

from mlx_delta.checkpoint.components import component
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.config import Quantization
from mlx_delta.conversion.write import Entry
from mlx_delta.errors import ArgumentError, ConvertError
from mlx_delta.json_files import read_json

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
RECIPES = ("unsloth", "auto")
_KEPT_DTYPE = (".A_log", ".dt_bias")


@dataclass(frozen=True)
class Recipe:
    """``rules``: (pattern of a module, width or None), the first match counts; ``base``: the default in config.json."""

    rules: tuple[tuple[str, Quantization | None], ...]
    base: Quantization | None

    def width(self, module: str) -> Quantization | None:
        return next((width for pattern, width in self.rules if fnmatchcase(module, pattern)), None)


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one canonical tensor: ``quantization`` None keeps it, in ``dtype``."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    quantization: Quantization | None

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def component(self) -> str:
        return component(self.name)

    @property
    def width_label(self) -> str:
        """ "3" (bits), or what it is kept as: "bfloat16"."""
        return str(self.quantization.bits) if self.quantization else str(self.dtype).removeprefix("mlx.core.")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tensors written for this one: itself, or packed weight, scales and biases."""
        if self.quantization is None:
            return (Entry(self.name, self.shape, self.dtype),)
        rows, columns = self.shape
        groups = (rows, columns // self.quantization.group_size)
        return (
            Entry(self.name, (rows, columns * self.quantization.bits // 32), mx.uint32),
            Entry(f"{self.module}.scales", groups, mx.bfloat16),
            Entry(f"{self.module}.biases", groups, mx.bfloat16),
        )

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


def unsloth(bits: int, group_size: int) -> Recipe:
    """gate/up N, down N+1, embedding, q/k/v and in_proj_qkv/z N+2, lm_head N+3; the rest bfloat16.

    What feeds the recurrent and attention states gets more bits than the MLPs, and what leaves them stays whole.
    """

    def at(extra: int) -> Quantization:
        return Quantization(next((width for width in WIDTHS if width >= bits + extra), WIDTHS[-1]), group_size)

    rules = (
        ("language_model.*.mlp.gate_proj", at(0)),
        ("language_model.*.mlp.up_proj", at(0)),
        ("language_model.*.mlp.down_proj", at(1)),
        ("language_model.*.self_attn.[qkv]_proj", at(2)),
        ("language_model.*.linear_attn.in_proj_qkv", at(2)),
        ("language_model.*.linear_attn.in_proj_z", at(2)),
        ("language_model.model.embed_tokens", at(2)),
        ("language_model.lm_head", at(3)),
    )
    return Recipe(rules, at(0))


def uniform(bits: int, group_size: int) -> Recipe:
    """Every linear layer and the embedding of the language model at one width, as mlx-lm does by default."""
    width = Quantization(bits, group_size)
    modules = ("lm_head", "model.embed_tokens", "model.layers.*_proj", "model.layers.*.in_proj_*")
    return Recipe(tuple((f"language_model.{module}", width) for module in modules), width)


def choose(recipe: str | None, bits: int | None, group_size: int) -> Recipe:
    """The recipe of that name (None: uniform) at base ``bits`` (None: 3 for unsloth, 4 for uniform).

    "auto" has no base, and no rules before the model is known: ``auto.auto`` makes them.
    Raises: ArgumentError for an unknown name, width or group size.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ArgumentError(f"recipe: expected {' or '.join(RECIPES)}, found {recipe}")
    if bits is not None and bits not in WIDTHS:
        raise ArgumentError(f"bits: expected one of {', '.join(map(str, WIDTHS))}, found {bits}")
    if group_size not in GROUP_SIZES:
        raise ArgumentError(f"group_size: expected one of {', '.join(map(str, GROUP_SIZES))}, found {group_size}")
    if recipe == "auto":
        if bits is not None:
            raise ArgumentError(f"bits: expected target_bpw instead for the recipe auto, found {bits}")
        return Recipe((), None)
    if recipe is None:
        return uniform(bits or 4, group_size)
    return unsloth(bits or 3, group_size)


def with_overrides(recipe: Recipe, file: Path, modules: Iterable[str]) -> Recipe:
    """``recipe`` with the rules of a JSON file before its own: {pattern of a module name: width}.

    A width is bits, {"bits": B, "group_size": G}, or null to keep the module as it is; patterns are those of the shell
    (``*.o_proj``), and the first that matches counts. ``modules``: those that can be quantized.
    Raises: ConvertError naming the file and the pattern, for one that matches nothing too.
    """
    entries = read_json(file, ConvertError)
    names = list(modules)
    for pattern in entries:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConvertError(f"{file}: {pattern}: expected a pattern of a module such as {names[0]}, found no match")
    group_size = recipe.base.group_size if recipe.base else GROUP_SIZES[1]
    rules = tuple((pattern, _override(value, group_size, f"{file}: {pattern}")) for pattern, value in entries.items())
    return Recipe((*rules, *recipe.rules), recipe.base)


def _override(value: object, group_size: int, origin: str) -> Quantization | None:
    if value is None:
        return None
    width = {"bits": value} if isinstance(value, int) else value
    if not isinstance(width, dict) or not {"bits"} <= set(width) <= {"bits", "group_size"}:
        raise ConvertError(f"{origin}: expected bits, null or an object of bits and group_size, found {value!r}")
    bits, group = width["bits"], width.get("group_size")
    found = Quantization(bits, group_size if group is None else group)
    whole = type(found.bits) is int and type(found.group_size) is int  # neither true nor 4.0
    if not whole or found.bits not in WIDTHS or found.group_size not in GROUP_SIZES:
        raise ConvertError(
            f"{origin}: expected bits of {', '.join(map(str, WIDTHS))} and groups of "
            f"{', '.join(map(str, GROUP_SIZES))}, found {value!r}"
        )
    return found


def plan(tensors: Iterable[Tensor], recipe: Recipe) -> tuple[TensorPlan, ...]:
    """What becomes of each tensor, in their order. Only the language model's matrices are quantized.

    Raises: ConvertError naming a tensor whose K is no multiple of the group size.
    """
    return tuple(_plan_one(tensor, recipe) for tensor in tensors)


def _plan_one(tensor: Tensor, recipe: Recipe) -> TensorPlan:
    width = recipe.width(tensor.name.removesuffix(".weight")) if len(tensor.shape) == 2 else None
    if width is not None and tensor.shape[1] % width.group_size:
        raise ConvertError(
            f"{tensor.name}: expected a multiple of the group size {width.group_size} along K, found {tensor.shape[1]}"
        )
    keep = tensor.name.endswith(_KEPT_DTYPE) or not mx.issubdtype(tensor.dtype, mx.floating)
    return TensorPlan(tensor.name, tensor.shape, tensor.dtype if keep else mx.bfloat16, width)


def quantization_section(plans: Iterable[TensorPlan], base: Quantization) -> dict[str, object]:
    """config.json's ``quantization`` as mlx-lm writes it: the default, then each module of another width."""

    def section(width: Quantization) -> dict[str, object]:
        return {"group_size": width.group_size, "bits": width.bits, "mode": "affine"}

    widths = {p.module: p.quantization for p in plans if p.quantization is not None}
    return {**section(base), **{module: section(width) for module, width in widths.items() if width != base}}
