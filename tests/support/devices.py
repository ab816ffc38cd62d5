"""Where tests run: everything on the CPU, whatever MLX's default is, and on a Mac what compares values on the GPU too.

On a GPU some bits are MLX's own kernels' (prompts), so that tests of equal bits are the CPU's.
"""

from __future__ import annotations

import re

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.bench.cases import CASES, Case
from support import ROOT

GPU = mx.metal.is_available()
DEVICES = [mx.Device(mx.cpu), *([mx.Device(mx.gpu)] if GPU else [])]
# Heads that a GPU refuses: csrc/gpu/launch.cpp, check_head_dims.
_BY_HEAD = ("attention", "attention_prepare", "attention_rows", "gated_delta", "delta_mixer", "delta_mixer_rows")
ODD_HEADS = [c for c in CASES if c.op in _BY_HEAD and re.search("d(36|72)", c.name)]


def refuses(device: mx.Device, case: Case) -> bool:
    """By an error; on a CPU nothing is refused."""
    return device == mx.Device(mx.gpu) and case in ODD_HEADS


def has_metal_kernel(op: str) -> bool:
    """Else the op is a composition of MLX's operations on a GPU."""
    return (ROOT / "metal" / f"{op}.metal").exists()


def absent() -> list[str]:
    """What this machine lacks, and so no test can use."""
    found = []
    if missing := [isa for isa in _core.built_cpu_isas() if isa not in _core.cpu_isas()]:
        found.append(f"CPU kernels of {', '.join(missing)}: this processor lacks the instructions")
    if not GPU:
        found.append("ops on a GPU: MLX finds no Metal here (their kernels: tests/ops_metal, on a CPU)")
    return found
