"""What this machine is: chip, cores, memory, system, power and heat, versions, the very kernels."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.selfcheck.way import Way
from mlx_delta.system import system

_SYSCTL = (
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "kern.osversion",
)
# What macOS says of itself, in its own words.
_COMMANDS = {"power": ["pmset", "-g", "batt"], "heat": ["pmset", "-g", "therm"]}


def machine(way: Way) -> dict[str, Any]:
    facts: dict[str, Any] = {"system": system().as_dict(), "macos": platform.mac_ver()[0], "device": _device()}
    if platform.system() == "Darwin":
        facts["sysctl"] = {name: _said(["sysctl", "-n", name]) for name in _SYSCTL}
        facts |= {name: _said(command) for name, command in _COMMANDS.items()}
    facts["extension"] = _digest(Path(_core.__file__).read_bytes())
    facts["shaders"] = {file: _digest(_core.metal_source(file).encode()) for file in _core.metal_files()}
    facts["variables"] = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("MLX_", "MTL_"))}
    return facts


def _device() -> dict[str, Any]:
    return {name: value for name, value in mx.device_info().items() if isinstance(value, str | int)}


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()[:400]
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({error.__class__.__name__})"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
