"""What runs the models here: the processor's instruction set, threads, versions."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version

import mlx.core as mx

from mlx_delta import _core


@dataclass(frozen=True)
class System:
    """isa: the instruction set that the CPU kernels use, of ``isas``, those that the machine has, best first."""

    isa: str
    isas: tuple[str, ...]
    threads: int
    metal: bool
    mlx_delta: str
    mlx: str
    python: str
    platform: str

    def facts(self) -> dict[str, str]:
        others = ", ".join(isa for isa in self.isas if isa != self.isa)
        return {
            "instruction set": self.isa + (f"  (MLX_DELTA_ISA can force {others})" if others else ""),
            "threads": f"{self.threads}  (MLX_DELTA_THREADS; by default one a physical core)",
            "Metal": "available" if self.metal else "not available",
            "mlx-delta": self.mlx_delta,
            "mlx": self.mlx,
            "Python": self.python,
            "platform": self.platform,
        }

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def gpu_generation() -> int | None:
    """Of Apple's GPUs, where MLX's default device is one: 13 is the M1's, 14 the M2's, and so on."""
    if mx.default_device() != mx.Device(mx.gpu):
        return None
    found = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return int(found[1]) if found else None


def wire_memory() -> None:
    """Let MLX keep on a GPU what it holds there, up to what macOS recommends; nothing on a CPU.

    Memory that is not wired may be paged out, and the first token after a pause waits for it.
    """
    if mx.default_device() == mx.Device(mx.gpu):
        mx.set_wired_limit(int(str(mx.device_info()["max_recommended_working_set_size"])))


def system() -> System:
    """Raises: ValueError if MLX_DELTA_ISA names an instruction set that the machine lacks, or MLX_DELTA_THREADS is not
    a number from 1 to 256.
    """
    return System(
        isa=_core.cpu_isa(),
        isas=tuple(_core.cpu_isas()),
        threads=_core.cpu_threads(),
        metal=mx.metal.is_available(),
        mlx_delta=version("mlx-delta"),
        mlx=version("mlx"),
        python=platform.python_version(),
        platform=platform.platform(),
    )
