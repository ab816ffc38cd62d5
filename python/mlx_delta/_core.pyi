"""
Fused operations of Qwen3.5 as MLX primitives. Use mlx_delta.ops, which documents them.
"""

from collections.abc import Sequence

import mlx.core

DECODE_TOKENS: int = 16

def attention(
    q: mlx.core.array,
    projection: mlx.core.array,
    keys: mlx.core.array,
    values: mlx.core.array,
    *,
    length: int,
    scale: float,
    start: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...
def attention_mlx(
    q: mlx.core.array,
    projection: mlx.core.array,
    keys: mlx.core.array,
    values: mlx.core.array,
    *,
    length: int,
    scale: float,
    start: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array:
    """For tests: what attention of many tokens is on a GPU, anywhere."""

def attention_prepare(
    projection: mlx.core.array,
    q_norm: mlx.core.array,
    k_norm: mlx.core.array,
    keys: mlx.core.array,
    values: mlx.core.array,
    *,
    offset: int,
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    eps: float = 1e-06,
    positions: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array, mlx.core.array]: ...
def attention_rows(
    projection: mlx.core.array,
    q_norm: mlx.core.array,
    k_norm: mlx.core.array,
    keys: Sequence[mlx.core.array],
    values: Sequence[mlx.core.array],
    *,
    offsets: Sequence[int],
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    scale: float,
    eps: float = 1e-06,
    counts: Sequence[int] | None = None,
    positions: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, list[mlx.core.array], list[mlx.core.array]]: ...
def conv1d(
    x: mlx.core.array,
    weight: mlx.core.array,
    state: mlx.core.array | None = None,
    *,
    mask: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array]: ...
def delta_mixer(
    projection: mlx.core.array,
    conv_weight: mlx.core.array,
    A_log: mlx.core.array,
    dt_bias: mlx.core.array,
    norm: mlx.core.array,
    conv_state: mlx.core.array | None,
    delta_state: mlx.core.array | None,
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-06,
    mask: mlx.core.array | None = None,
    pending: mlx.core.array | None = None,
    keep: bool = True,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array, mlx.core.array]: ...
def delta_mixer_rows(
    projection: mlx.core.array,
    conv_weight: mlx.core.array,
    A_log: mlx.core.array,
    dt_bias: mlx.core.array,
    norm: mlx.core.array,
    conv_states: Sequence[mlx.core.array | None],
    delta_states: Sequence[mlx.core.array | None],
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-06,
    counts: Sequence[int] | None = None,
    pending: Sequence[mlx.core.array | None] | None = None,
    keep: Sequence[bool] | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, list[mlx.core.array], list[mlx.core.array]]: ...
def embedding(
    tokens: mlx.core.array,
    table: Matrix,
    dtype: mlx.core.Dtype,
    *,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...
def experts(
    x: mlx.core.array,
    chosen: mlx.core.array,
    weights: mlx.core.array,
    matrices: Sequence[Matrix],
    shared: Sequence[Matrix],
    norm: mlx.core.array,
    *,
    eps: float = 1e-06,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...
def experts_mlx(
    x: mlx.core.array,
    chosen: mlx.core.array,
    weights: mlx.core.array,
    matrices: Sequence[Matrix],
    shared: Sequence[Matrix],
    norm: mlx.core.array,
    *,
    eps: float = 1e-06,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array:
    """For tests: what experts is on a GPU, anywhere."""

def fit_affine(
    weight: mlx.core.array,
    importance: mlx.core.array,
    bits: int,
    group_size: int,
    feedback: mlx.core.array | None = None,
    order: mlx.core.array | None = None,
) -> tuple[mlx.core.array, mlx.core.array, mlx.core.array, mlx.core.array]:
    """Quantize an evaluated matrix by weighted least squares."""

def gated_delta(
    q: mlx.core.array,
    k: mlx.core.array,
    v: mlx.core.array,
    a: mlx.core.array,
    b: mlx.core.array,
    A_log: mlx.core.array,
    dt_bias: mlx.core.array,
    state: mlx.core.array | None = None,
    *,
    mask: mlx.core.array | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array]: ...
def gated_norm(
    y: mlx.core.array,
    z: mlx.core.array,
    norm: mlx.core.array,
    *,
    eps: float = 1e-06,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...

class KernelCall:
    """The call that an op makes of its CPU kernel."""

    @property
    def kernel(self) -> str:
        """Its name in csrc/cpu/kernels.def."""

    @property
    def type(self) -> int:
        """cpu::DType of the activations."""

    @property
    def arguments(self) -> bytes:
        """
        The struct, with the numbers of buffers, from 1, in the place of pointers; 0: null.
        """

    @property
    def pointers(self) -> list[int]:
        """Where those are, in bytes."""

    @property
    def buffers(self) -> list[tuple[bytes, bool]]:
        """
        (content, whether it is an output): inputs, then outputs as the kernel finds them.
        """

def kernel_call(result: mlx.core.array) -> KernelCall:
    """
    For tests: the call that an op's unevaluated result makes of its CPU kernel.
    """

class Matrix:
    """
    A weight matrix [rows, cols]: plain, or affine-quantized in MLX's packing.
    """

    @staticmethod
    def plain(weight: mlx.core.array) -> Matrix:
        """From float weight [N, K]."""

    @staticmethod
    def affine(
        weight: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array, bits: int, group_size: int
    ) -> Matrix:
        """
        From packed uint32 weight [N, K * bits / 32], scales and biases [N, K / group_size].
        """

    @property
    def weight(self) -> mlx.core.array: ...
    @property
    def scales(self) -> mlx.core.array | None: ...
    @property
    def biases(self) -> mlx.core.array | None: ...
    @property
    def bits(self) -> int:
        """Bits of a quantized value; 0: plain."""

    @property
    def group_size(self) -> int:
        """Columns that share a scale and a bias; 0: plain."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of weight, scales and biases."""

    def __repr__(self) -> str: ...

def use_huge_pages(a: mlx.core.array) -> bool:
    """Back an evaluated array by huge pages; whether that worked."""

def read_all(a: mlx.core.array) -> int:
    """Read an evaluated array once on all threads; a checksum."""

def add_moments(sums: mlx.core.array, x: mlx.core.array, y: mlx.core.array | None = None) -> None:
    """
    Add x^T x to the upper triangle of an evaluated array, or y^T x to all of it, in place.
    """

def factor_moments(sums: mlx.core.array, order: mlx.core.array, factor: float, damping: float) -> mlx.core.array:
    """Factor moments into U D U^T in place; returns D."""

def solve_moments(
    values: mlx.core.array, upper: mlx.core.array, diagonal: mlx.core.array, order: mlx.core.array
) -> None:
    """Multiply by the inverse of factored moments, in place."""

PROBES: list = ...

def probe(
    values: mlx.core.array,
    *,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array:
    """
    What a GPU makes of single operations on values float32 [N]: float32 [len(PROBES), N].
    """

def qmm(
    x: mlx.core.array,
    segments: Sequence[Matrix],
    *,
    norm: mlx.core.array | None = None,
    eps: float = 1e-06,
    residual: mlx.core.array | None = None,
    activation: str | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...
def set_qmm_variant(rows: int, simdgroups: int) -> None:
    """
    For comparing: in place of what qmm's plan chooses for a Metal kernel, rows of weights of a simdgroup and
    simdgroups of a threadgroup; 0: as it chooses. A plan that the kernel cannot follow raises ValueError.
    """

def qmm_mlx(
    x: mlx.core.array,
    segments: Sequence[Matrix],
    *,
    norm: mlx.core.array | None = None,
    eps: float = 1e-06,
    residual: mlx.core.array | None = None,
    activation: str | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array:
    """For tests: what qmm of many rows is on a GPU, anywhere."""

def route(
    x: mlx.core.array,
    router: Matrix,
    shared_gate: Matrix,
    norm: mlx.core.array,
    *,
    chosen: int,
    eps: float = 1e-06,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array]: ...
def route_mlx(
    x: mlx.core.array,
    router: Matrix,
    shared_gate: Matrix,
    norm: mlx.core.array,
    *,
    chosen: int,
    eps: float = 1e-06,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> tuple[mlx.core.array, mlx.core.array]:
    """For tests: what route is on a GPU, anywhere."""

def sample(
    logits: mlx.core.array,
    random: mlx.core.array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    allowed: mlx.core.array | None = None,
    prompt: mlx.core.array | None = None,
    generated: mlx.core.array | None = None,
    presence_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None,
) -> mlx.core.array: ...
def cpu_isa() -> str:
    """The instruction set that the CPU kernels use."""

def cpu_isas() -> list[str]:
    """Those that this machine runs, best first; MLX_DELTA_ISA forces one."""

def built_cpu_isas() -> list[str]:
    """All that the extension was built for."""

def cpu_threads() -> int:
    """Threads of a kernel: the physical cores, or MLX_DELTA_THREADS."""

def use_cpu_isa(isa: str) -> None:
    """For tests: use another from now on."""

def multiply_add(steps: int) -> int:
    """
    Float32 vector multiply-adds on all threads: how many operations it was.
    """

class Launch:
    """One kernel launch of a plan."""

    @property
    def kernel(self) -> str:
        """The kernel's name in source."""

    @property
    def file(self) -> str:
        """Of metal/<file>.metal."""

    @property
    def source(self) -> str:
        """
        The very text that Metal compiles, of a library with this kernel alone.
        """

    @property
    def buffers(self) -> list[tuple[str, int]]:
        """(role, index) of the buffers at 0, 1, ..; params come next."""

    @property
    def params(self) -> bytes: ...
    @property
    def threadgroups(self) -> list[int]: ...
    @property
    def threads(self) -> list[int]:
        """Of a threadgroup."""

class Plan:
    """What a GPU does for an op."""

    @property
    def launches(self) -> list[Launch]: ...
    @property
    def scratch_bytes(self) -> list[int]: ...
    @property
    def in_place(self) -> list[tuple[int, int, bool]]:
        """
        (output, input, copy): outputs that take over an input's memory; copy: only part of it is written.
        """

def plan(result: mlx.core.array) -> tuple[Plan, list[mlx.core.array]]:
    """The plan of an op's unevaluated result, and the inputs it speaks of."""

def launches(results: Sequence[mlx.core.array]) -> list[Launch]:
    """
    The launches of what unevaluated arrays still need, of each kernel one, and those of the host's copies.
    """

class Compiled:
    """
    What came of a kernel; times in ms, the library's for all that share it.
    """

    @property
    def kernel(self) -> str: ...
    @property
    def library_ms(self) -> float: ...
    @property
    def pipeline_ms(self) -> float: ...
    @property
    def most_threads(self) -> int:
        """Of a threadgroup."""

    @property
    def simd_width(self) -> int: ...
    @property
    def threadgroup_bytes(self) -> int: ...
    @property
    def log(self) -> str:
        """What the compiler had to say of the library."""

def library_source(launches: Sequence[Launch]) -> str:
    """
    The text of the library that has the kernels of launches, all of one file and each another.
    """

def compile_kernels(launches: Sequence[Launch]) -> list[Compiled]:
    """
    Compile the kernels of launches of one file, those that are not there yet, as one library on the GPU.
    """

def kernels_compiled_late() -> int:
    """
    Kernels compiled because a launch found them missing, since the process began.
    """

def metal_source(file: str) -> str:
    """The flattened text of metal/<file>.metal."""

def metal_files() -> list[str]:
    """Those of metal_source."""

def set_poison_outputs(on: bool) -> None:
    """For tests: fill every output with NaN before its kernel runs."""
