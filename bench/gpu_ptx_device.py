"""An NVIDIA GPU through the CUDA driver API, by cuda-python: memory, modules made of PTX, launches, times of graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class DeviceError(RuntimeError):
    """No GPU, no driver, or a call of it that failed."""


@dataclass(frozen=True)
class Function:
    """A kernel on the device. ``registers`` a thread, ``local_bytes``: of thread memory, what registers do not hold."""

    module: Any
    handle: Any
    registers: int
    local_bytes: int


class Device(Protocol):
    """What a run needs of a GPU; addresses are plain numbers."""

    name: str
    driver: str
    cache_bytes: int

    def load(self, ptx: str, kernel: str) -> Function: ...
    def set_constant(self, function: Function, symbol: str, value: bytes) -> None: ...
    def allocate(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def upload(self, address: int, array: np.ndarray) -> None: ...
    def download(self, address: int, array: np.ndarray) -> None: ...
    def copy(self, to: int, from_: int, nbytes: int) -> None: ...
    def launch(
        self, function: Function, threadgroups: Sequence[int], threads: Sequence[int], buffers: Sequence[int]
    ) -> None: ...
    def synchronize(self) -> None: ...
    def time(self, work: Callable[[], None], repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` runs of what ``work`` launches and copies, recorded once."""
        ...


class CudaDevice:
    """The first GPU that CUDA shows; CUDA_VISIBLE_DEVICES picks another."""

    def __init__(self) -> None:
        """Raises DeviceError where there is no cuda-python, no driver or no GPU."""
        try:
            from cuda.bindings import driver
        except ImportError as missing:
            raise DeviceError("cuda-python: expected the package, found none: pip install cuda-python") from missing
        self._cuda = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as failed:  # cuda-python's own, where libcuda is not there at all
            raise DeviceError(f"an NVIDIA GPU: expected one with its driver, found none ({failed})") from failed
        self._device = self._call("cuDeviceGet", 0)
        context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", context)
        self._stream = self._call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.name = self._call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        version = self._call("cuDriverGetVersion")
        self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
        self.cache_bytes = self._attribute("CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE")

    def load(self, ptx: str, kernel: str) -> Function:
        module = self._call("cuModuleLoadData", ptx.encode() + b"\0", about=kernel)
        handle = self._call("cuModuleGetFunction", module, kernel.encode(), about=kernel)
        attributes = self._cuda.CUfunction_attribute
        registers = self._call("cuFuncGetAttribute", attributes.CU_FUNC_ATTRIBUTE_NUM_REGS, handle)
        local = self._call("cuFuncGetAttribute", attributes.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle)
        return Function(module, handle, registers, local)

    def set_constant(self, function: Function, symbol: str, value: bytes) -> None:
        address, size = self._call("cuModuleGetGlobal", function.module, symbol.encode(), about=symbol)
        if size != len(value):
            raise DeviceError(f"{symbol}: expected {len(value)} bytes, found {size}")
        self.upload(int(address), np.frombuffer(value, np.uint8))

    def allocate(self, nbytes: int) -> int:
        return int(self._call("cuMemAlloc", max(nbytes, 1)))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)
        self.synchronize()

    def download(self, address: int, array: np.ndarray) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        self.synchronize()

    def copy(self, to: int, from_: int, nbytes: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, from_, nbytes, self._stream)

    def launch(
        self, function: Function, threadgroups: Sequence[int], threads: Sequence[int], buffers: Sequence[int]
    ) -> None:
        values = [ctypes.c_void_p(address) for address in buffers]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self._call(
            "cuLaunchKernel", function.handle, *threadgroups, *threads, 0, self._stream, ctypes.addressof(pointers), 0
        )

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def time(self, work: Callable[[], None], repeats: int) -> list[float]:
        """One launch of a graph each: the host's own time, several microseconds a launch, is not in it."""
        self._call("cuStreamBeginCapture", self._stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        work()
        graph = self._call("cuStreamEndCapture", self._stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        start, end = (self._call("cuEventCreate", 0) for _ in range(2))
        seconds = []
        for number in range(repeats + 1):
            self._call("cuEventRecord", start, self._stream)
            self._call("cuGraphLaunch", executable, self._stream)
            self._call("cuEventRecord", end, self._stream)
            self._call("cuEventSynchronize", end)
            if number:  # the first warms up
                seconds.append(1e-3 * self._call("cuEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cuEventDestroy", event)
        self._call("cuGraphExecDestroy", executable)
        self._call("cuGraphDestroy", graph)
        return seconds

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._cuda.CUdevice_attribute, name)
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _call(self, name: str, *arguments: Any, about: str = "") -> Any:
        """The result of a function of the driver: nothing, a value, or a tuple. Raises DeviceError where it fails."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise DeviceError(f"{name}{about and ' of ' + about}: {getattr(status, 'name', status)}")
        return results[0] if len(results) == 1 else tuple(results) or None
