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

from mlx_delta.arch.base import Architecture, Recipes
from mlx_delta.checkpoint.safetensors import Entry
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.config import Quantization
from mlx_delta.errors import ArgumentError, ConvertError
from mlx_delta.json_files import read_json
from mlx_delta.model.experts import EXPERTS

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
RECIPES = ("unsloth", "auto")


@dataclass(frozen=True)
class Recipe:
    """``rules``: (pattern of a module, width or None), the first match counts; ``base``: the default in config.json."""

    rules: tuple[tuple[str, Quantization | None], ...]
    base: Quantization | None

    def with_draft(self, group_size: int, recipes: Recipes) -> Recipe:
        """It, and the width of the MTP head's matrices, where it has said none."""
        width = Quantization(recipes.draft_bits, group_size)
        return Recipe((*self.rules, *((pattern, width) for pattern in recipes.draft)), self.base)

    def width(self, module: str) -> Quantization | None:
        return next((width for pattern, width in self.rules if fnmatchcase(module, pattern)), None)


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one canonical tensor: quantization None keeps it, in ``dtype``. component: its row in tables."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    quantization: Quantization | None
    component: str

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def width_label(self) -> str:
        """ "3" (bits), or what it is kept as: "bfloat16"."""
        return str(self.quantization.bits) if self.quantization else str(self.dtype).removeprefix("mlx.core.")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tensors written for this one: itself, or packed weight, scales and biases."""
        if self.quantization is None:
            return (Entry(self.name, self.shape, self.dtype),)
        *rows, columns = self.shape
        groups = (*rows, columns // self.quantization.group_size)
        return (
            Entry(self.name, (*rows, columns * self.quantization.bits // 32), mx.uint32),
            Entry(f"{self.module}.scales", groups, mx.bfloat16),
            Entry(f"{self.module}.biases", groups, mx.bfloat16),
        )

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


def check_recipe(recipe: str | None, bits: int | None, group_size: int) -> None:
    """``choose`` can make this recipe. Raises: ArgumentError for an unknown name, width or group size."""
    if recipe is not None and recipe not in RECIPES:
        raise ArgumentError(f"recipe: expected {' or '.join(RECIPES)}, found {recipe}")
    if bits is not None and bits not in WIDTHS:
        raise ArgumentError(f"bits: expected one of {', '.join(map(str, WIDTHS))}, found {bits}")
    if group_size not in GROUP_SIZES:
        raise ArgumentError(f"group_size: expected one of {', '.join(map(str, GROUP_SIZES))}, found {group_size}")
    if recipe == "auto" and bits is not None:
        raise ArgumentError(f"bits: expected target_bpw instead for the recipe auto, found {bits}")


def choose(recipe: str | None, bits: int | None, group_size: int, recipes: Recipes) -> Recipe:
    """The recipe of that name (None: uniform) at base ``bits`` (None: 3 for unsloth, 4 for uniform).

    "auto" has no base, and no rules before the model is known: ``auto.auto`` makes them. recipes: the architecture's.
    Raises: ArgumentError for an unknown name, width or group size.
    """
    check_recipe(recipe, bits, group_size)
    if recipe == "auto":
        return Recipe((), None)
    if recipe is None:
        return uniform(bits or 4, group_size, recipes)
    return unsloth(bits or 3, group_size, recipes)


def unsloth(bits: int, group_size: int, recipes: Recipes) -> Recipe:
    """Unsloth's mix: each kind of matrix so many bits over the base, or the next width that there is."""

    def at(extra: int) -> Quantization:
        return Quantization(next((width for width in WIDTHS if width >= bits + extra), WIDTHS[-1]), group_size)

    return Recipe(tuple((pattern, at(extra)) for pattern, extra in recipes.unsloth), at(0))


def uniform(bits: int, group_size: int, recipes: Recipes) -> Recipe:
    """Every linear layer and the embedding of the language model at one width, as mlx-lm does by default."""
    width = Quantization(bits, group_size)
    return Recipe(tuple((pattern, width) for pattern in recipes.linear), width)


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


def is_matrix(tensor: Tensor | TensorPlan) -> bool:
    """Whether it can be quantized: a matrix [N, K], or those of all experts [E, N, K]."""
    return len(tensor.shape) == 2 or EXPERTS in tensor.name


def plan(tensors: Iterable[Tensor], recipe: Recipe, architecture: Architecture) -> tuple[TensorPlan, ...]:
    """What becomes of each tensor, in their order. Only the language model's matrices are quantized.

    Raises: ConvertError naming a tensor whose K is no multiple of the group size.
    """
    return tuple(_plan_one(tensor, recipe, architecture) for tensor in tensors)


def _plan_one(tensor: Tensor, recipe: Recipe, architecture: Architecture) -> TensorPlan:
    columns = tensor.shape[-1]
    width = recipe.width(tensor.name.removesuffix(".weight")) if is_matrix(tensor) else None
    if width is not None and columns % width.group_size:
        raise ConvertError(
            f"{tensor.name}: expected a multiple of the group size {width.group_size} along K, found {columns}"
        )
    keep = tensor.name.endswith(architecture.recipes.kept) or not mx.issubdtype(tensor.dtype, mx.floating)
    dtype = tensor.dtype if keep else mx.bfloat16
    return TensorPlan(tensor.name, tensor.shape, dtype, width, architecture.components.of(tensor.name))


def quantization_section(plans: Iterable[TensorPlan], base: Quantization) -> dict[str, object]:
    """config.json's ``quantization`` as mlx-lm writes it: the default, then each module of another width."""

    def section(width: Quantization) -> dict[str, object]:
        return {"group_size": width.group_size, "bits": width.bits, "mode": "affine"}

    widths = {p.module: p.quantization for p in plans if p.quantization is not None}
    return {**section(base), **{module: section(width) for module, width in widths.items() if width != base}}
