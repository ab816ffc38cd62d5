"""The recipe ``auto``: each matrix as wide as its effect on the model's predictions deserves, within a size.

A module's table says how far the model's predictions move (KL divergence, nats) when it alone has so many bits. Small
errors of different matrices add up, so the widths that minimise the sum of the entries chosen, under a budget of
bytes, are looked for: from the least of every module, the step up that saves most divergence a byte is taken, along
each module's lower convex hull, until no step fits. Unquantized, bfloat16, is a step too, and its divergence is 0.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_delta.arch.base import Architecture
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.config import Quantization
from mlx_delta.conversion.recipe import WIDTHS, Recipe, TensorPlan, is_matrix, plan, uniform
from mlx_delta.errors import ArgumentError, ConvertError
from mlx_delta.json_files import read_json

# Module -> bits -> mean KL divergence from the unquantized model, in nats.
Sensitivity = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class _Option:
    """One width of one module: None keeps it whole."""

    width: Quantization | None
    nbytes: int
    kld: float


def auto(
    tensors: Iterable[Tensor], sensitivity: Sensitivity, target: float, group_size: int, architecture: Architecture
) -> Recipe:
    """The widths that fit ``target`` bits a weight of the text model, scales and biases included.

    Modules that ``sensitivity`` leaves out stay whole.
    Raises: ArgumentError when it has modules that are no matrices of ``tensors``, or ``target`` is out of reach.
    """
    text = [tensor for tensor in tensors if tensor.name.startswith("language_model.")]
    whole = {each.module: each for each in plan(text, Recipe((), None), architecture)}
    wrong = next((module for module in sensitivity if module not in whole or not is_matrix(whole[module])), None)
    if wrong is not None:
        raise ArgumentError(f"sensitivity: expected matrices of this model, found {wrong}")
    hulls = {module: _hull(whole[module], sensitivity[module], group_size) for module in sensitivity}
    chosen = dict.fromkeys(hulls, 0)
    weights = sum(math.prod(each.shape) for each in whole.values())
    kept = sum(each.nbytes for module, each in whole.items() if module not in hulls)
    least = kept + sum(options[0].nbytes for options in hulls.values())
    left = int(target * weights / 8) - least
    if left < 0:
        raise _too_small(target, least, weights)
    while True:
        steps = [
            (_gain(options, chosen[module]), module)
            for module, options in hulls.items()
            if chosen[module] + 1 < len(options) and _cost(options, chosen[module]) <= left
        ]
        if not steps:
            break
        _, module = max(steps)
        left -= _cost(hulls[module], chosen[module])
        chosen[module] += 1
    widths = {module: hulls[module][index].width for module, index in chosen.items()}
    counts = Counter(width for width in widths.values() if width is not None)
    if not counts:
        raise _too_large(target)
    return Recipe(tuple(widths.items()), counts.most_common(1)[0][0])


def check_target(tensors: Iterable[Tensor], target: float, group_size: int, architecture: Architecture) -> None:
    """Before anything is measured: some widths of the matrices that may be chosen have ``target`` bits a weight.

    Raises: ArgumentError, with the least that there is; ConvertError naming a matrix that groups do not divide.
    """
    text = [tensor for tensor in tensors if tensor.name.startswith("language_model.")]
    weights = sum(math.prod(tensor.shape) for tensor in text)
    least = plan(text, uniform(min(WIDTHS), group_size, architecture.recipes), architecture)
    whole = plan(text, Recipe((), None), architecture)
    fixed = architecture.recipes.fixed
    nbytes = sum((b if b.module.endswith(fixed) else a).nbytes for a, b in zip(least, whole, strict=True))
    if int(target * weights / 8) < nbytes:
        raise _too_small(target, nbytes, weights)
    if int(target * weights / 8) >= sum(each.nbytes for each in whole):
        raise _too_large(target)


def _too_small(target: float, nbytes: int, weights: int) -> ArgumentError:
    return ArgumentError(f"target_bpw: expected at least {-(-nbytes * 800 // weights) / 100}, found {target}")


def _too_large(target: float) -> ArgumentError:
    return ArgumentError(f"target_bpw: expected a size that needs quantization, found {target}")


def _hull(whole: TensorPlan, klds: Mapping[int, float], group_size: int) -> list[_Option]:
    """The options worth having, by size: each step costs more bytes for a nat than the one before."""
    options = []
    for bits, kld in sorted(klds.items()):
        width = Quantization(bits, group_size)
        nbytes = replace(whole, quantization=width).nbytes
        options.append(_Option(width, nbytes, kld))
    options.append(_Option(None, whole.nbytes, 0.0))
    hull: list[_Option] = []
    for option in options:
        if hull and option.kld >= hull[-1].kld:
            continue
        while len(hull) > 1 and _slope(hull[-2], option) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(low: _Option, high: _Option) -> float:
    return (low.kld - high.kld) / (high.nbytes - low.nbytes)


def _gain(options: list[_Option], index: int) -> float:
    return _slope(options[index], options[index + 1])


def _cost(options: list[_Option], index: int) -> int:
    return options[index + 1].nbytes - options[index].nbytes


def write_sensitivity(file: Path, sensitivity: Sensitivity) -> None:
    file.write_text(json.dumps(sensitivity, indent=1) + "\n", encoding="utf-8")


def read_sensitivity(file: Path) -> dict[str, dict[int, float]]:
    """Raises: ConvertError naming the file (and module) for what ``write_sensitivity`` did not write."""
    content = read_json(file, ConvertError)
    try:
        result = {m: {int(bits): float(kld) for bits, kld in klds.items()} for m, klds in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConvertError(f"{file}: expected {{module: {{bits: KLD}}}}, found {error}") from error
    for module, klds in result.items():
        if not klds or set(klds) - set(WIDTHS) or not all(0 <= kld < math.inf for kld in klds.values()):
            raise ConvertError(f"{file}: {module}: expected finite KLD by bits, found {klds}")
    return result
