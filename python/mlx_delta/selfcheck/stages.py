"""The stages of a selfcheck, in order. A stage takes a ``Way`` and returns facts; what it raises is its failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_delta.selfcheck import numbers, speed, variants
from mlx_delta.selfcheck.kernels import compile_all
from mlx_delta.selfcheck.machine import machine
from mlx_delta.selfcheck.way import Way


@dataclass(frozen=True)
class Stage:
    """seconds: after which it is given up. needs_gpu_kernels: it is about them alone. needs_time, needs_gpu: emulated,
    it means nothing, or nothing new."""

    what: str
    function: Callable[[Way], dict[str, Any]]
    seconds: int
    needs_gpu_kernels: bool = False
    needs_time: bool = False
    needs_gpu: bool = False

    def skipped(self, way: str) -> str | None:
        """Why it does not run that way."""
        if (self.needs_gpu_kernels and way == "cpu") or (self.needs_gpu and way != "gpu"):
            return "about a GPU"
        return "times of an emulator mean nothing" if self.needs_time and way == "emulate" else None


STAGES = {
    "machine": Stage("this machine", machine, 30),
    "compile": Stage("compiling every kernel", compile_all, 300, needs_gpu_kernels=True),
    "compile again": Stage("the same in another process", compile_all, 300, needs_gpu=True),
    "subnormals": Stage("float16 subnormals", numbers.subnormals, 60),
    "functions": Stage("functions and rounding", numbers.functions, 60, needs_gpu_kernels=True),
    "cases": Stage("every op against its reference", numbers.cases, 300),
    "rows": Stage("the same row among others", numbers.rows, 120),
    "states": Stage("states in place, with work in flight", numbers.states, 120),
    "bandwidth": Stage("memory", speed.bandwidth, 60, needs_time=True),
    "ops": Stage("times of ops", speed.times, 300, needs_time=True),
    "variants": Stage("other choices of qmm's plan", variants.variants, 300, needs_gpu_kernels=True),
    "token": Stage("a whole token", speed.token, 300, needs_time=True),
    "command buffers": Stage("limits of command buffers, wired memory", speed.limits, 300, needs_time=True),
}
