"""The arguments of a conversion, checked against each other before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mlx_delta.conversion.recipe import check_recipe
from mlx_delta.errors import ArgumentError


@dataclass(frozen=True)
class Arguments:
    """Those of ``convert`` that say how. calibrated, measured: whether a calibration, and a sensitivity, will be given.

    Raises: ArgumentError for one that is wrong, or does not go with the others.
    """

    quantize: bool = True
    recipe: str | None = None
    bits: int | None = None
    group_size: int = 64
    imatrix: Path | None = None
    awq: bool = True
    awq_ratio: float | None = None
    fit: bool = True
    overrides: Path | None = None
    target_bpw: float | None = None
    keep_mtp: bool | None = None
    calibrated: bool = False
    measured: bool = False

    def __post_init__(self) -> None:
        if not self.quantize:
            self._check_alone()
            return
        check_recipe(self.recipe, self.bits, self.group_size)
        self._check_recipe()
        if self.calibrated and not self.fit:
            raise ArgumentError("calibration: expected the fit with it, found fit=False")
        if self.awq_ratio is not None and not 0 <= self.awq_ratio <= 1:
            raise ArgumentError(f"awq_ratio: expected a number from 0 to 1, found {self.awq_ratio}")
        if self.awq_ratio is not None and not self.folds:
            raise ArgumentError(
                f"awq_ratio: expected an imatrix with it, awq, and no calibration, found {self.awq_ratio}"
            )

    @property
    def folds(self) -> bool:
        """Whether AWQ's folds are searched and applied: calibration does better than they do."""
        return self.awq and self.imatrix is not None and not self.calibrated

    def _check_alone(self) -> None:
        given = {
            name: getattr(self, name) for name in ("recipe", "bits", "imatrix", "awq_ratio", "overrides", "target_bpw")
        }
        for name, value in given.items():
            if value is not None:
                raise ArgumentError(f"{name}: expected it with quantize, found {value} and quantize=False")
        if self.calibrated:
            raise ArgumentError("calibration: expected it with quantize, found quantize=False")

    def _check_recipe(self) -> None:
        if self.target_bpw is not None and not 0 < self.target_bpw < math.inf:
            raise ArgumentError(f"target_bpw: expected a positive number, found {self.target_bpw}")
        if self.measured and self.recipe != "auto":
            raise ArgumentError(f"sensitivity: expected the recipe auto with it, found {self.recipe or 'no recipe'}")
        if self.target_bpw is not None and self.recipe != "auto":
            raise ArgumentError(f"target_bpw: expected the recipe auto with it, found {self.recipe or 'no recipe'}")
        if self.recipe == "auto" and self.target_bpw is None:
            raise ArgumentError("target_bpw: expected bits a weight of the text model for the recipe auto, found none")
        if self.recipe == "auto" and not self.measured:
            raise ArgumentError("sensitivity: expected the matrices', measured, for the recipe auto, found none")
        if self.recipe == "unsloth" and self.imatrix is None and not self.calibrated:
            raise ArgumentError(
                "imatrix: expected one for the recipe unsloth (`mlx-delta imatrix` or llama.cpp's llama-imatrix make "
                "it), or a calibration, found neither"
            )
