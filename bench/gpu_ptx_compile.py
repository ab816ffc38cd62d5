"""Writes all that `python -m bench.gpu_ptx run` needs, on a machine with mlx_delta and clang and no GPU."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import nvptx
from bench import gpu_ptx_format as form
from bench.gpu_ptx_peers import peers
from mlx_delta import _core, ops
from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, Case, cases_of
from mlx_delta.bench.cases.draws import Zeros
from support.launches import threads_of

LARGE = 64 << 10  # bytes: inputs from here on are recipes
BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}


def write_folder(out: Path, patterns: Sequence[str], dtypes: Sequence[str]) -> form.Manifest:
    """The folder ``out``, whole or not at all. Raises ValueError where no case matches, FileExistsError."""
    if out.exists():
        raise FileExistsError(f"{out}: expected a folder that does not exist yet, found one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=out.name) as temporary:
        folder = Path(temporary) / "out"
        folder.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            kernels: dict[str, Future[form.Kernel]] = {}
            cases = []
            try:
                for case, dtype in selected(patterns, dtypes):
                    record, launches = write_case(folder, case, dtype)
                    cases.append(record)
                    for launch in launches:
                        if launch.kernel not in kernels:
                            kernels[launch.kernel] = pool.submit(write_kernel, folder, launch)
                compiled = {name: kernel.result() for name, kernel in kernels.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or an interrupt would wait for all of them
                raise
        for peer in peers(patterns):
            np.savez_compressed(folder / peer.case.file, allow_pickle=False, **peer.arrays)
            compiled |= {name: write_ptx(folder, peer.compile(name)) for name in peer.kernels}
            cases.append(peer.case)
        if not cases:
            expected = f"expected part of the name of a case with a kernel, such as {CASES[0].id}"
            raise ValueError(f"--filter {' '.join(patterns)}: {expected}; found none")
        manifest = form.Manifest(form.FORMAT, compiled, cases)
        form.write_manifest(folder, manifest)
        folder.rename(out)
    return manifest


def selected(patterns: Sequence[str], dtypes: Sequence[str]) -> Iterator[tuple[Case, str]]:
    """Small cases in each dtype, the 9B's in bfloat16, those without a kernel left out."""
    for case in cases_of("9B"):
        if case.name.endswith("-m512") or not any(pattern in case.id for pattern in patterns):
            continue
        for name in ["bfloat16"] if case.real else dtypes:
            try:
                _core.plan(case.run(case.make(DTYPES[name], Zeros()))[0])
            except ValueError:
                continue
            yield case, name


def write_kernel(folder: Path, launch: _core.Launch) -> form.Kernel:
    sizes = {len(launch.buffers): len(launch.params)}
    kernel = nvptx.compile_kernel(launch.source, launch.kernel, threads=threads_of(launch), constant_bytes=sizes)
    return write_ptx(folder, kernel)


def write_ptx(folder: Path, kernel: nvptx.Kernel) -> form.Kernel:
    file = f"{zlib.crc32(kernel.ptx.encode()):08x}.ptx"
    (folder / file).write_text(kernel.ptx)
    loads = {str(width): count for width, count in sorted(nvptx.read_ptx(kernel.ptx).loads.items())}
    return form.Kernel(file, nvptx.ARCHITECTURE, loads)


def write_case(folder: Path, case: Case, dtype: str) -> tuple[form.Case, list[_core.Launch]]:
    """Its arrays, as a file; and its record with the launches of its plan."""
    recipes: dict[tuple[int, int], form.Recipe] = {}
    arguments = {name: generated(value, recipes) for name, value in case.arguments(DTYPES[dtype]).items()}
    results = case.run(arguments)
    plan, given = _core.plan(results[0])
    inputs: list[form.Input] = []
    arrays: dict[str, np.ndarray] = {}
    for i, array in enumerate(given):
        bits = bits_of(array)
        recipe = recipes.get((bits.nbytes, zlib.crc32(bits.data)))
        inputs.append(form.Input(name_of(array.dtype), bits.size, recipe))
        if recipe is None:
            arrays[f"input{i}"] = bits
    by_cpu = case.thinned  # the reference would take minutes
    expected = case.run(arguments) if by_cpu else case.reference(arguments)
    takes_over = {output: source for output, source, _ in plan.in_place}
    outputs = []
    for i, (result, reference) in enumerate(zip(results, expected, strict=True)):
        arrays[f"output{i}"] = bits_of(reference.astype(result.dtype))
        bound = BOUNDS[DTYPES[dtype]]
        outputs.append(form.Output(name_of(result.dtype), result.size, bound, takes_over.get(i)))
    record = form.Case(
        id=case.id,
        dtype=dtype,
        timed=case.real,
        bytes=case.bytes(arguments, results),
        reference="the CPU kernel" if by_cpu else "the reference",
        inputs=inputs,
        outputs=outputs,
        scratch=list(plan.scratch_bytes),
        launches=[launch_record(launch) for launch in plan.launches],
    )
    np.savez_compressed(folder / record.file, allow_pickle=False, **arrays)
    return record, list(plan.launches)


def launch_record(launch: _core.Launch) -> form.Launch:
    constants = {nvptx.constant_symbol(len(launch.buffers)): launch.params.hex()}
    return form.Launch(launch.kernel, list(launch.buffers), constants, list(launch.threadgroups), list(launch.threads))


def name_of(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.").replace("bool_", "bool")


def bits_of(array: mx.array) -> np.ndarray:
    """Half types and bfloat16 as their bits."""
    array = mx.contiguous(array).flatten()
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def generated(value: object, recipes: dict[tuple[int, int], form.Recipe]) -> Any:
    """The value with each large array replaced by one that a recipe makes, of the same mean and deviation."""
    if isinstance(value, list):
        return [generated(v, recipes) for v in value]
    if isinstance(value, ops.Matrix):
        weight = generated(value.weight, recipes)
        if value.scales is None:
            return ops.Matrix.plain(weight)
        scales, biases = generated(value.scales, recipes), generated(value.biases, recipes)
        return ops.Matrix.affine(weight, scales, biases, value.bits, value.group_size)
    if not isinstance(value, mx.array) or value.nbytes < LARGE or name_of(value.dtype) not in (*form.METAL, "uint32"):
        return value
    mean, deviation = 0.0, 0.0
    if value.dtype != mx.uint32:
        sample = value.flatten()[: 1 << 16].astype(mx.float32)
        mean, deviation = float(mx.mean(sample)), float(mx.std(sample))
    recipe = form.Recipe(len(recipes) + 1, mean, deviation, -1)
    bits = form.generate(recipe, name_of(value.dtype), value.size)
    crc = zlib.crc32(bits.data)
    recipes[bits.nbytes, crc] = replace(recipe, crc=crc)
    return mx.array(bits).view(value.dtype).reshape(value.shape)
