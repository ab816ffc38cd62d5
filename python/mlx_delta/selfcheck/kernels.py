"""Compiling every kernel that there is: how long it takes, and what the GPU has for each."""

from __future__ import annotations

from typing import Any

from mlx_delta import _core
from mlx_delta.bench.cases.launches import specialisations
from mlx_delta.engine.kernels import compile_launches, libraries, needed
from mlx_delta.errors import RedTests
from mlx_delta.example import example_checkpoint
from mlx_delta.loading import load_model
from mlx_delta.selfcheck.way import Way

_EMULATED = 2  # libraries: that the stage works; tests compile all
_LOGS = 20


def compile_all(way: Way) -> dict[str, Any]:
    """kernels: [library ms, pipeline ms, threads at most, simd width, bytes of threadgroup memory] of each.

    A library's time counts for all its kernels, up to eight.
    """
    launches = needed(load_model(example_checkpoint()).network)
    if way.name == "emulate":
        return _compiled_by_clang(launches)
    of_cases = {use.launch.kernel: use.launch for use in specialisations().values()}
    compiled = compile_launches(list(({launch.kernel: launch for launch in launches} | of_cases).values()))
    logs = {each.log[:2000]: each.kernel for each in compiled if each.log}
    numbers = {
        each.kernel: [
            round(each.library_ms, 1),
            round(each.pipeline_ms, 1),
            each.most_threads,
            each.simd_width,
            each.threadgroup_bytes,
        ]
        for each in compiled
    }
    return {"count": len(compiled), "kernels": numbers, "logs": {name: log for log, name in list(logs.items())[:_LOGS]}}


def _compiled_by_clang(launches: list[_core.Launch]) -> dict[str, Any]:
    from msl import strict_compile

    texts = [_core.library_source(each) for each in libraries(launches)[-_EMULATED:]]
    found = [str(diagnostic) for text in texts for diagnostic in strict_compile(text)]
    if found:
        raise RedTests(found[0])
    return {"count": len(launches), "compiled libraries": len(texts)}
