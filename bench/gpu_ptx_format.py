"""What `python -m bench.gpu_ptx compile` writes: manifest.json, a PTX file a kernel, a file of arrays a case.

Only numpy is needed to read it. bfloat16 travels as its bits (uint16). Inputs too large to carry are recipes: integer
arithmetic makes them, so that they are the same bits on any machine.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msl.arrays import decode, encode

FORMAT = 1
# What an array of each dtype is in numpy; and what tests/msl calls it.
NUMPY: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "uint8": np.uint8,
    "bool": np.bool_,
}
METAL = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}


class FormatError(ValueError):
    """A folder that is not what `compile` writes."""


@dataclass(frozen=True)
class Recipe:
    """Words of hashed counters, or values of about a normal distribution; ``crc`` is that of the bytes."""

    seed: int
    mean: float
    deviation: float
    crc: int


@dataclass(frozen=True)
class Input:
    """``recipe``: None where the values are in the case's file, as input0, input1, .."""

    dtype: str
    count: int
    recipe: Recipe | None


@dataclass(frozen=True)
class Output:
    """Expected in the case's file, as output0, output1, .., within ``bound`` in relative rms.

    ``takes_over``: the input whose memory it is.
    """

    dtype: str
    count: int
    bound: float
    takes_over: int | None


@dataclass(frozen=True)
class Launch:
    """``buffers``: (role, index) of each parameter; ``constants``: bytes, in hexadecimal, of each constant symbol."""

    kernel: str
    buffers: list[tuple[str, int]]
    constants: dict[str, str]
    threadgroups: list[int]
    threads: list[int]


@dataclass(frozen=True)
class Case:
    """``bytes``: what it has to move; ``timed``: whether its shapes are those of a real model. ``reference``: what made
    the expected results."""

    id: str
    dtype: str
    timed: bool
    bytes: int
    reference: str
    inputs: list[Input]
    outputs: list[Output]
    scratch: list[int]
    launches: list[Launch]

    @property
    def file(self) -> str:
        return f"{self.id}-{self.dtype}.npz".replace(":", "_")


@dataclass(frozen=True)
class Kernel:
    """``loads``: load instructions of device memory by the bytes of one."""

    file: str
    architecture: str
    loads: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    format: int
    kernels: dict[str, Kernel]
    cases: list[Case]


def itemsize(dtype: str) -> int:
    """Bytes of a value."""
    return np.dtype(NUMPY[dtype]).itemsize


def generate(recipe: Recipe, dtype: str, count: int) -> np.ndarray:
    """The array of a recipe: uint32 words, or floats as their bits. Raises FormatError if it is not what it was."""
    if dtype == "uint32":
        array = hashed((count + 1) // 2, recipe.seed).view(np.uint32)[:count]
    else:
        parts = hashed(count, recipe.seed).view(np.uint16).reshape(count, 4)
        # four uniform variables of 16 bits: their sum has a standard deviation of 2^16 / sqrt(3)
        sums = parts.astype(np.int32).sum(1) - 2 * 65535
        values = sums.astype(np.float32) * np.float32(recipe.deviation / 37837.0) + np.float32(recipe.mean)
        array = encode(values, METAL[dtype])
    assert array.nbytes == count * itemsize(dtype)
    crc = zlib.crc32(array.data)
    if recipe.crc not in (-1, crc):
        raise FormatError(f"a generated {dtype} array of {count}: expected checksum {recipe.crc:08x}, found {crc:08x}")
    return array


def hashed(count: int, seed: int) -> np.ndarray:
    """splitmix64 of seed, seed + 1, .."""
    step, first, second = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    x = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 40)) * step
    x = (x ^ x >> np.uint64(30)) * first
    x = (x ^ x >> np.uint64(27)) * second
    return x ^ x >> np.uint64(31)


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    """rms(found - expected) / rms(expected), of bits or values; NaN if anything is NaN."""
    f, e = decode(found).astype(np.float64), decode(expected).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(f - e))) / max(np.sqrt(np.mean(np.square(e))), 1e-30))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Raises FormatError where the folder is not what `compile` writes."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FormatError(f"{path}: expected a folder made by `python -m bench.gpu_ptx compile`, found none")
    raw = json.loads(path.read_text())
    if raw.get("format") != FORMAT:
        raise FormatError(f"{path}: format: expected {FORMAT}, found {raw.get('format')}")
    kernels = {name: Kernel(**kernel) for name, kernel in raw["kernels"].items()}
    return Manifest(FORMAT, kernels, [read_case(case) for case in raw["cases"]])


def read_case(raw: dict[str, Any]) -> Case:
    inputs = [Input(**{**i, "recipe": i["recipe"] and Recipe(**i["recipe"])}) for i in raw["inputs"]]
    launches = [Launch(**{**a, "buffers": [tuple(b) for b in a["buffers"]]}) for a in raw["launches"]]
    return Case(**{**raw, "inputs": inputs, "outputs": [Output(**o) for o in raw["outputs"]], "launches": launches})
