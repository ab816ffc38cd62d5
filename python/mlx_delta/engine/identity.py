"""Which model it is, to the bit: for what is kept of it in files."""

from __future__ import annotations

import hashlib
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.checkpoint.safetensors import raw_bytes
from mlx_delta.engine.cuts import Turns
from mlx_delta.model.network import Network, arrays_of

_FORMAT = 1  # of what is kept
_PACKAGE = Path(__file__).parents[1]
_COMPUTE = ("arch", "engine", "model", "ops")


def model_identity(network: Network, turns: Turns) -> str:
    """A hash of all that the bits of keys, values and states depend on, but for the ids: weights, config, the code
    that computes, the machine's instructions, macOS, and how a prompt is cut.

    Names and shapes would not do: two fine-tunes have the same. The MTP head is none of it: it changes no answer.
    """
    device = mx.device_info().get("architecture") if mx.default_device() == mx.Device(mx.gpu) else _core.cpu_isa()
    system = platform.mac_ver()[0]  # whose compiler makes machine code of Metal kernels; "" elsewhere
    versions = (_FORMAT, version("mlx"), version("mlx-delta"), str(device), system)
    settings = (str(network.dtype), network.kv_bits, turns, network.config)
    found = hashlib.sha256(repr((versions, settings)).encode())
    found.update(_code_hash(_PACKAGE))
    found.update(hashlib.sha256(Path(_core.__file__).read_bytes()).digest())
    with ThreadPoolExecutor(_core.cpu_threads()) as pool:  # hashing leaves Python's lock
        for one in pool.map(_digest, arrays_of(replace(network, mtp=None))):
            found.update(one)
    return found.hexdigest()


def _digest(a: mx.array) -> bytes:
    return repr((a.shape, str(a.dtype))).encode() + hashlib.sha256(raw_bytes(a)).digest()


@cache
def _code_hash(package: Path) -> bytes:
    """Of the Python modules of those parts of the package that bits depend on."""
    found = hashlib.sha256()
    for file in sorted(file for part in _COMPUTE for file in (package / part).rglob("*.py") if file.is_file()):
        found.update(f"{file.relative_to(package)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return found.digest()
