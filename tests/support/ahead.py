"""Compiles ahead, on all cores, what tests/ops_metal is going to launch one kernel at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta.bench.cases.launches import specialisations
from msl import CompileError, SourceError, Unsupported
from support.launches import firsts_of_a_kind, library


@pytest.fixture(scope="session", autouse=True)
def compile_ahead(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only where most of them are needed; a test waits for the kernel it needs, and reports what is wrong with it."""
    if sum("ops_metal" in item.nodeid for item in request.session.items) < 300:
        yield
        return

    def compile_one(name: str, source: str, options: dict[str, Any]) -> None:
        with suppress(CompileError, SourceError, Unsupported):
            library(source).compile(name, **options)

    in_half = firsts_of_a_kind(mx.float16)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for options in ({}, {"check": True}):
            for name, use in specialisations().items():
                wanted = use.dtype == mx.bfloat16 or (not options and (use.dtype == mx.float32 or name in in_half))
                if wanted and not use.case.real:
                    pool.submit(compile_one, name, use.launch.source, options)
        yield
        pool.shutdown(cancel_futures=True)
