"""Which model it is, to the bit: for what is kept of it in files."""

from __future__ import annotations

import hashlib
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.checkpoint.safetensors import raw_bytes
from mlx_delta.engine.cuts import Turns
from mlx_delta.model.network import Network, arrays_of

_FORMAT = 1  # of what is kept


def model_identity(network: Network, turns: Turns) -> str:
    """A hash of all that the bits of keys, values and states depend on, but for the ids: weights, config, kernels, the
    machine's instructions, macOS, and how a prompt is cut.

    Names and shapes would not do: two fine-tunes have the same. The MTP head is none of it: it changes no answer.
    """
    device = mx.device_info().get("architecture") if mx.default_device() == mx.Device(mx.gpu) else _core.cpu_isa()
    system = platform.mac_ver()[0]  # whose compiler makes machine code of Metal kernels; "" elsewhere
    versions = (_FORMAT, version("mlx"), version("mlx-delta"), str(device), system)
    settings = (str(network.dtype), network.kv_bits, turns, network.config)
    found = hashlib.sha256(repr((versions, settings)).encode())
    found.update(hashlib.sha256(Path(_core.__file__).read_bytes()).digest())
    with ThreadPoolExecutor(_core.cpu_threads()) as pool:  # hashing leaves Python's lock
        for one in pool.map(_digest, arrays_of(replace(network, mtp=None))):
            found.update(one)
    return found.hexdigest()


def _digest(a: mx.array) -> bytes:
    return repr((a.shape, str(a.dtype))).encode() + hashlib.sha256(raw_bytes(a)).digest()
