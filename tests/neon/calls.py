"""Records what ops ask of their CPU kernels, for a program that has no MLX: run_calls.cpp reads the file.

An op's arguments are the struct that the op itself fills (``_core.kernel_call``), with every buffer beside it: no
layout is spelled here. x86-64 and aarch64 lay structs out alike.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.bench.cases import Arguments, Case


def in_wider_rows(array: mx.array, dims: int) -> mx.array:
    """The same values, rows of the last ``dims`` dims two elements apart; nothing lies behind the last one."""
    row = math.prod(array.shape[-dims:])
    wide = mx.contiguous(mx.pad(array.reshape(-1, row), [(0, 0), (0, 2)], constant_values=math.nan))
    mx.eval(wide)
    return wide[:, :row].reshape(array.shape)


@dataclass
class Call:
    """A case's op on some arguments. The output buffers come in the order of the results."""

    case: Case
    arguments: Arguments
    results: list[mx.array] = field(init=False)  # never evaluated
    recorded: _core.KernelCall = field(init=False)

    def __post_init__(self) -> None:
        sliced: Mapping[str, mx.array] = {
            name: in_wider_rows(self.arguments[name], dims) for name, dims in self.case.sliced.items()
        }
        self.results = self.case.run({**self.arguments, **sliced})
        self.recorded = _core.kernel_call(self.results[0])

    def encoded(self) -> bytes:
        call = self.recorded
        header = (call.kernel.encode(), call.type, len(call.arguments), len(call.pointers), len(call.buffers))
        parts = [struct.pack("32s4i", *header), call.arguments, struct.pack(f"{len(call.pointers)}i", *call.pointers)]
        for content, output in call.buffers:
            parts += [struct.pack("2q", len(content), output), content]
        return b"".join(parts)

    def decode(self, content: memoryview) -> tuple[list[mx.array], memoryview]:
        """This call's results, in order, from the head of what the program wrote; and the rest."""
        found = []
        for result in self.results:
            mine, content = content[: result.nbytes], content[result.nbytes :]
            found.append(mx.array(np.frombuffer(mine, np.uint8)).view(result.dtype).reshape(result.shape))
        return found, content
