"""Records kernel calls for a program that has no MLX: an op's arguments, as a kernel of csrc/cpu/kernels.h takes them,
with every buffer beside them. run_calls.cpp reads the file.

The structures here are those of csrc/cpu/*.h; x86-64 and aarch64 lay them out alike.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator
from ctypes import Structure, c_bool, c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.bench.cases import Arguments, as_list

DTYPES = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
EPS = 1e-6


def fields(pointers: str, integers: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in pointers.split()] + [(name, c_int64) for name in integers.split()]


class MatrixView(Structure):
    _fields_ = [
        *fields("data scales biases", ""),
        ("type", c_int), ("bits", c_int), ("group_size", c_int),
        *fields("", "rows cols"),
    ]  # fmt: skip


class Rows(Structure):
    _fields_ = fields("data", "stride")


def rows(names: str) -> list[tuple[str, type]]:
    return [(name, Rows) for name in names.split()]


class AttentionArgs(Structure):
    _fields_ = [*fields("q projection keys values start y", "B T Hq Hkv D S length width"), ("scale", c_float)]


class AttentionPrepareArgs(Structure):
    _fields_ = [
        *fields("projection q_norm k_norm positions q keys values", "B T Hq Hkv D S offset"),
        ("rope_dim", c_int), ("sections", c_int * 3), ("rope_theta", c_float), ("eps", c_float),
    ]  # fmt: skip


class Conv1dArgs(Structure):
    _fields_ = [*rows("x"), *fields("weight mask state_in state_out y", "B T C")]


class DeltaMixerArgs(Structure):
    _fields_ = [
        *fields("projection conv_weight A_log dt_bias norm mask conv_in conv_out delta_state y", "B T Hk Hv Dk Dv"),
        ("eps", c_float),
    ]


class EmbeddingArgs(Structure):
    _fields_ = [*fields("tokens out", "count"), ("table", MatrixView)]


class GatedDeltaArgs(Structure):
    _fields_ = [*rows("q k v a b"), *fields("A_log dt_bias mask state y", "B T Hk Hv Dk Dv")]


class GatedNormArgs(Structure):
    _fields_ = [*fields("y", ""), *rows("z"), *fields("norm out", "rows heads D"), ("eps", c_float)]


class QmmArgs(Structure):
    _fields_ = [
        *fields("x norm residual y", "M positions K N"),
        ("eps", c_float), ("swiglu", c_bool), ("segment_count", c_int), ("segments", MatrixView * 8),
    ]  # fmt: skip


class SampleArgs(Structure):
    _fields_ = [
        *fields("logits random allowed prompt generated tokens", "B V N"),
        *fields("", "allowed_stride prompt_stride generated_stride top_k"),
        ("top_p", c_double), ("log_min_p", c_float), ("temperature", c_float),
        ("presence_penalty", c_float), ("repetition_penalty", c_float),
    ]  # fmt: skip


KERNELS = (
    AttentionArgs, AttentionPrepareArgs, Conv1dArgs, DeltaMixerArgs, EmbeddingArgs, GatedDeltaArgs, QmmArgs, SampleArgs,
    GatedNormArgs,
)  # fmt: skip


def pointer_offsets(kind: Any, base: int = 0) -> Iterator[int]:
    """Where a structure has pointers, those of structures and arrays in it too."""
    if kind is c_void_p:
        yield base
    elif issubclass(kind, ctypes.Array):
        for i in range(kind._length_):
            yield from pointer_offsets(kind._type_, base + i * ctypes.sizeof(kind._type_))
    elif issubclass(kind, Structure):
        for name, member in kind._fields_:
            yield from pointer_offsets(member, base + getattr(kind, name).offset)


@dataclass
class Call:
    """One op on its arguments, as Case.arguments makes them: what kernels take in float32 is so already.

    Pointers hold the number of a buffer, from 1; None is null. The output buffers come in the order of the results.
    """

    op: str
    arguments: Arguments
    buffers: list[tuple[bytes, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results = as_list(getattr(ops, self.op)(**self.arguments))  # for their shapes and dtypes
        self.dtype = self.arguments.get("logits", self.results[0]).dtype  # of the activations
        self.structure: Structure = getattr(self, self.op)()

    def add(self, array: mx.array | None, output: bool = False) -> int | None:
        if array is None:
            return None
        bits = np.array(mx.contiguous(array).view(_UNSIGNED[array.dtype.size]))
        self.buffers.append((bits.tobytes(), output))
        return len(self.buffers)

    def named(self, names: str, dtype: mx.Dtype | None = None) -> list[int | None]:
        arrays = [self.arguments.get(name) for name in names.split()]
        return [self.add(a.astype(dtype) if dtype is not None and a is not None else a) for a in arrays]

    def rows(self, names: str, dims: int) -> list[Rows]:
        """Arguments whose last dims make a row, two elements apart; nothing lies behind the last one."""
        found = []
        for name in names.split():
            array = self.arguments[name]
            row = math.prod(array.shape[-dims:])
            wide = mx.pad(array.reshape(-1, row), [(0, 0), (0, 2)], constant_values=math.nan)
            found.append(Rows(self.add(wide.reshape(-1)[:-2]), row + 2))
        return found

    def result(self, index: int) -> int:
        """The buffer of a result: NaN until the kernel writes it."""
        self.buffers.append((b"\xff" * self.results[index].nbytes, True))
        return len(self.buffers)

    def state(self, index: int, name: str) -> int | None:
        """The buffer of a result that updates an argument, or zeros."""
        before, after = self.arguments.get(name), self.results[index]
        return self.add(mx.zeros(after.shape, after.dtype) if before is None else before, output=True)

    def view(self, matrix: ops.Matrix) -> MatrixView:
        parts = [self.add(matrix.weight), self.add(matrix.scales), self.add(matrix.biases)]
        kind = DTYPES[(matrix.weight if matrix.scales is None else matrix.scales).dtype]
        return MatrixView(*parts, kind, matrix.bits, matrix.group_size, matrix.rows, matrix.cols)

    def attention(self) -> Structure:
        a = self.arguments
        (B, Hq, T, D), (_, Hkv, S, _), width = a["q"].shape, a["keys"].shape, a["projection"].shape[2]
        parts = [*self.named("q projection keys values"), *self.named("start", mx.int32), self.result(0)]
        return AttentionArgs(*parts, B, T, Hq, Hkv, D, S, a["length"], width, a["scale"])

    def attention_prepare(self) -> Structure:
        a, (B, Hq, T, D), (_, Hkv, S, _) = self.arguments, self.results[0].shape, self.results[1].shape
        positions = a["positions"]
        if positions is not None:
            positions = mx.broadcast_to(positions.astype(mx.int32), (3, B, T))
        parts = [*self.named("projection q_norm k_norm"), self.add(positions)]
        parts += [self.result(0), self.state(1, "keys"), self.state(2, "values")]
        rope = (a["rope_dim"], tuple(a["rope_sections"]), a["rope_theta"])
        return AttentionPrepareArgs(*parts, B, T, Hq, Hkv, D, S, a["offset"], *rope, EPS)

    def conv1d(self) -> Structure:
        parts = [*self.rows("x", 1), *self.named("weight"), *self.named("mask", mx.bool_)]
        y, state = self.result(0), self.state(1, "state")
        return Conv1dArgs(*parts, state, state, y, *self.results[0].shape)

    def delta_mixer(self) -> Structure:
        (B, T, _), (_, Hv, Dv, Dk) = self.results[0].shape, self.results[2].shape
        parts = [*self.named("projection conv_weight A_log dt_bias norm"), *self.named("mask", mx.bool_)]
        y, conv, delta = self.result(0), self.state(1, "conv_state"), self.state(2, "delta_state")
        return DeltaMixerArgs(*parts, conv, conv, delta, y, B, T, self.arguments["key_heads"], Hv, Dk, Dv, EPS)

    def embedding(self) -> Structure:
        parts = [*self.named("tokens", mx.int32), self.result(0)]
        return EmbeddingArgs(*parts, self.arguments["tokens"].size, self.view(self.arguments["table"]))

    def gated_delta(self) -> Structure:
        (B, T, Hk, Dk), (_, _, Hv, Dv) = self.arguments["q"].shape, self.results[0].shape
        parts = [*self.rows("q k v", 2), *self.rows("a b", 1), *self.named("A_log dt_bias")]
        parts += self.named("mask", mx.bool_)
        y, state = self.result(0), self.state(1, "state")
        return GatedDeltaArgs(*parts, state, y, B, T, Hk, Hv, Dk, Dv)

    def gated_norm(self) -> Structure:
        a, D = self.arguments, self.results[0].shape[-1]
        heads = self.results[0].shape[-2] if self.results[0].ndim > 2 else 1
        parts = [*self.named("y"), *self.rows("z", 2 if heads > 1 else 1), *self.named("norm"), self.result(0)]
        return GatedNormArgs(*parts, a["y"].size // (heads * D), heads, D, a["eps"])

    def qmm(self) -> Structure:
        matrices, x = self.arguments["segments"], self.arguments["x"]
        K, N = x.shape[-1], self.results[0].shape[-1]
        positions = x.shape[-2] if x.ndim > 1 else 1
        swiglu = self.arguments.get("activation") == "swiglu"
        sizes = (x.size // K, positions, K, N, EPS)
        parts = [*self.named("x norm residual"), self.result(0), *sizes, swiglu, len(matrices)]
        return QmmArgs(*parts, (MatrixView * 8)(*map(self.view, matrices)))

    def sample(self) -> Structure:
        a, (B, V) = self.arguments, self.arguments["logits"].shape
        N, names = int(a.get("vocab_size", V)), "allowed prompt generated"
        parts = [*self.named(f"logits random {names}"), self.result(0), B, V, N]
        parts += [0 if a.get(name) is None or a[name].shape[0] == 1 else N for name in names.split()]
        parts += [a.get("top_k", 0), a.get("top_p", 1.0), math.log(a["min_p"]) if a.get("min_p") else -math.inf]
        return SampleArgs(
            *parts, a.get("temperature", 1.0), a.get("presence_penalty", 0.0), a.get("repetition_penalty", 1.0)
        )

    def encoded(self) -> bytes:
        offsets = list(pointer_offsets(type(self.structure)))
        header = (KERNELS.index(type(self.structure)), DTYPES[self.dtype], ctypes.sizeof(self.structure))
        parts = [struct.pack("5i", *header, len(offsets), len(self.buffers)), bytes(self.structure)]
        parts.append(struct.pack(f"{len(offsets)}i", *offsets))
        for content, output in self.buffers:
            parts += [struct.pack("2q", len(content), output), content]
        return b"".join(parts)

    def decode(self, content: memoryview) -> tuple[list[mx.array], memoryview]:
        """This call's results, in order, from the head of what the program wrote; and the rest."""
        found = []
        for result in self.results:
            mine, content = content[: result.nbytes], content[result.nbytes :]
            found.append(mx.array(np.frombuffer(mine, np.uint8)).view(result.dtype).reshape(result.shape))
        return found, content
