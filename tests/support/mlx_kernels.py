"""Kernels that nobody here wrote: MLX's own, from headers that its wheels ship, and what mx.fast generates."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from msl.source import flatten
from support import ROOT

KERNELS = Path("mlx/backend/metal/kernels")
# Three headers are not emulated: bfloat functions made of builtins of Apple's compiler (the shim has the functions),
# logging, and complex numbers, whose members are qualified with address spaces.
COMPLEX = """
template <class T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r, T i = 0) : real(r), imag(i) {}
};
typedef complex_t<float> complex64_t;
"""
REPLACED = {
    str(KERNELS / "bf16_math.h"): "",
    str(KERNELS / "logging.h"): "",
    str(KERNELS / "complex.h"): COMPLEX,
}
# Arguments of a quantized matrix product that is not batched.
UNUSED = [np.int32(0), np.zeros(4, np.int32), np.zeros(4, np.int64)]
NO_BATCH = [*UNUSED, *UNUSED, np.zeros(4, np.int64), np.zeros(4, np.int64)]
QUANTIZED = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")


def include_directory() -> Path:
    """Where MLX's kernel headers are: an unpacked macOS wheel, or the installed mlx, which ships them too.

    Raises FileNotFoundError where they are in none.
    """
    build = ROOT / "build"
    unpacked = [Path(p) for p in filter(None, [os.environ.get("MLX_METAL_WHEEL")])] + sorted(build.glob("macos/mlx==*"))
    candidates = [path / "mlx" / "include" for path in unpacked] + [Path(mx.__file__).parent / "include"]
    for path in candidates:
        if (path / KERNELS / "quantized.h").is_file():
            return path
    raise FileNotFoundError(
        f"MLX's kernel headers are in none of {', '.join(map(str, candidates))}; `make wheel-macos` unpacks them, or "
        "set MLX_METAL_WHEEL to the folder of an unpacked wheel of mlx-metal"
    )


def replaced_headers() -> dict[str, str]:
    """MLX's headers that need another text here.

    The tile loader's is its own, but for a copy of a struct between address spaces, which clang rejects: the elements
    are copied instead.
    """
    loader = KERNELS / "steel" / "gemm" / "loader.h"
    to, from_ = (
        r"\*\(\(threadgroup ReadVector\*\)\(&dst\[(.*?)\]\)\)",
        r"\*\(\(const device ReadVector\*\)\(&src\[(.*?)\]\)\)",
    )
    copy = r"for (int e = 0; e < vec_size; e++) dst[\1 + e] = src[\2 + e];"
    text, count = re.subn(rf"{to} =\s*{from_};", copy, (include_directory() / loader).read_text())
    assert count == 1, "the tile loader has changed"
    return {**REPLACED, str(loader): text}


def mlx_source(headers: Sequence[str], instance: str) -> str:
    """The text of one instance of a kernel of MLX, named "kernel"."""
    includes = "".join(f'#include "{KERNELS / header}"\n' for header in headers)
    text = f'{includes}template [[host_name("kernel")]] [[kernel]] decltype({instance}) {instance};\n'
    return flatten(text, [include_directory()], replaced_headers())


def generated_source(path: Path, function: Callable[..., object], *arguments: mx.array) -> str:
    """What mx.fast generates for a call, after MLX's own utilities as on a Mac; only a Mac runs it, any machine exports
    it. path: of the file to export to."""
    mx.export_function(str(path), function, *arguments)
    match = re.search(rb"template <typename.*?>;\n", path.read_bytes(), re.S)
    assert match is not None
    return flatten(f'#include "{KERNELS / "utils.h"}"\n{match[0].decode()}', [include_directory()], REPLACED)
