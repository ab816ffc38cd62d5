"""Checks and times, on a GPU, what `python -m bench.gpu_ptx compile` wrote. Needs numpy and the device only."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.gpu_ptx_device import Device, Function
from bench.gpu_ptx_format import Case, Kernel, Manifest, generate, itemsize, relative_rms

COPY_BYTES = 512 << 20
MAX_SETS = 64


@dataclass(frozen=True)
class Row:
    """What a case is reported as. ``gbs``: the bytes it has to move over its time; ``copy_gbs``: of a device-to-device
    copy, read and written bytes both counted; ``share``: the one in per cent of the other. None where untimed."""

    case: str
    dtype: str
    error: float
    bound: float
    reference: str
    bytes: int
    us: float | None
    gbs: float | None
    copy_gbs: float | None
    share: float | None
    registers: list[int]
    local_bytes: list[int]
    loads: list[dict[str, int]]
    gpu: str
    driver: str

    @property
    def right(self) -> bool:
        return self.error <= self.bound


class Buffers:
    """A case's inputs, outputs and scratch on the device."""

    def __init__(self, device: Device, case: Case, inputs: list[np.ndarray]) -> None:
        self._device = device
        self._owned: list[int] = []
        self.inputs = [self._new(array) for array in inputs]
        self.outputs = []
        for output in case.outputs:
            if output.takes_over is None:
                size = output.count * itemsize(output.dtype)
                self.outputs.append(self._new(np.full(size, 255, np.uint8)))
            else:
                self.outputs.append(self.inputs[output.takes_over])
        self.scratch = [self._new(np.full(size, 255, np.uint8)) for size in case.scratch]

    def _new(self, contents: np.ndarray) -> int:
        address = self._device.allocate(contents.nbytes)
        self._owned.append(address)
        self._device.upload(address, contents)
        return address

    def address(self, role: str, index: int) -> int:
        return {"input": self.inputs, "output": self.outputs, "scratch": self.scratch}[role][index]

    def free(self) -> None:
        for address in self._owned:
            self._device.free(address)


def run(device: Device, folder: Path, manifest: Manifest, pattern: str, repeats: int) -> Iterator[Row]:
    """A row a case whose name contains ``pattern``. Raises DeviceError where the device refuses a kernel."""
    copy = copy_bandwidth(device, repeats)
    for case in manifest.cases:
        if pattern in case.id:
            yield run_case(device, folder, case, manifest.kernels, copy, repeats)


def copy_bandwidth(device: Device, repeats: int) -> float:
    """Bytes a second of a copy within the device's memory, each counted when read and when written."""
    to, from_ = device.allocate(COPY_BYTES), device.allocate(COPY_BYTES)
    times = device.time(lambda: device.copy(to, from_, COPY_BYTES), repeats)
    device.free(to)
    device.free(from_)
    return 2 * COPY_BYTES / statistics.median(times)


def run_case(device: Device, folder: Path, case: Case, kernels: dict[str, Kernel], copy: float, repeats: int) -> Row:
    """The case's error, and its time if its shapes are real ones."""
    arrays = np.load(folder / case.file)
    inputs = [
        arrays[f"input{i}"] if one.recipe is None else generate(one.recipe, one.dtype, one.count)
        for i, one in enumerate(case.inputs)
    ]
    functions = []
    for launch in case.launches:
        text = (folder / kernels[launch.kernel].file).read_text()
        functions.append(device.load(text, launch.kernel))
        for symbol, value in launch.constants.items():
            device.set_constant(functions[-1], symbol, bytes.fromhex(value))
    expected = [arrays[f"output{i}"] for i in range(len(case.outputs))]
    error = check(device, case, functions, inputs, expected)
    seconds = time(device, case, functions, inputs, repeats) if case.timed else None
    gbs = case.bytes / seconds if seconds else None
    return Row(
        case=case.id,
        dtype=case.dtype,
        error=error,
        bound=max(output.bound for output in case.outputs),
        reference=case.reference,
        bytes=case.bytes,
        us=seconds and 1e6 * seconds,
        gbs=gbs and gbs / 1e9,
        copy_gbs=copy / 1e9 if seconds else None,
        share=gbs and 100 * gbs / copy,
        registers=[f.registers for f in functions],
        local_bytes=[f.local_bytes for f in functions],
        loads=[kernels[launch.kernel].loads for launch in case.launches],
        gpu=device.name,
        driver=device.driver,
    )


@contextmanager
def placed(device: Device, case: Case, inputs: list[np.ndarray], sets: int) -> Iterator[list[Buffers]]:
    """So many copies of a case's arrays on the device."""
    buffers: list[Buffers] = []
    try:
        for _ in range(sets):
            buffers.append(Buffers(device, case, inputs))
        yield buffers
    finally:
        for one in buffers:
            one.free()


def launch_all(device: Device, case: Case, functions: list[Function], buffers: Buffers) -> None:
    for launch, function in zip(case.launches, functions, strict=True):
        addresses = [buffers.address(role, index) for role, index in launch.buffers]
        device.launch(function, launch.threadgroups, launch.threads, addresses)


def check(
    device: Device, case: Case, functions: list[Function], inputs: list[np.ndarray], expected: list[np.ndarray]
) -> float:
    """The largest relative rms error of the outputs; NaN if anything is NaN."""
    with placed(device, case, inputs, 1) as (buffers,):
        launch_all(device, case, functions, buffers)
        device.synchronize()
        errors = []
        for address, wanted in zip(buffers.outputs, expected, strict=True):
            found = np.empty_like(wanted)
            device.download(address, found)
            errors.append(relative_rms(found, wanted))
    return max(errors, key=lambda error: (error != error, error))


def time(device: Device, case: Case, functions: list[Function], inputs: list[np.ndarray], repeats: int) -> float:
    """Seconds: the median over runs of as many copies of the case as no cache holds."""
    sets = max(1, min(MAX_SETS, -(-4 * device.cache_bytes // case.bytes)))
    with placed(device, case, inputs, sets) as buffers:

        def work() -> None:
            for one in buffers:
                launch_all(device, case, functions, one)

        times = device.time(work, repeats)
    return statistics.median(times) / sets
