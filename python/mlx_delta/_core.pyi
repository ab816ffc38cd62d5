"""Types of the extension. The ops are documented in mlx_delta.ops."""

from collections.abc import Sequence

import mlx.core as mx

DECODE_TOKENS: int
"""Up to this many tokens of a sequence are decoded, more are a prompt: ops and network draw the line alike."""

Stream = mx.Stream | mx.Device | None

class Matrix:
    """A weight matrix [rows, cols]: plain, or affine-quantized in MLX's packing. Checked when it is made."""

    weight: mx.array
    scales: mx.array | None
    biases: mx.array | None
    bits: int
    group_size: int
    rows: int
    cols: int
    @staticmethod
    def plain(weight: mx.array) -> Matrix: ...
    @staticmethod
    def affine(weight: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int) -> Matrix: ...
    @property
    def nbytes(self) -> int: ...

def qmm(
    x: mx.array,
    segments: Sequence[Matrix],
    *,
    norm: mx.array | None = None,
    eps: float = 1e-6,
    residual: mx.array | None = None,
    activation: str | None = None,
    stream: Stream = None,
) -> mx.array: ...
def embedding(tokens: mx.array, table: Matrix, dtype: mx.Dtype, *, stream: Stream = None) -> mx.array: ...
def conv1d(
    x: mx.array,
    weight: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]: ...
def gated_delta(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]: ...
def gated_norm(y: mx.array, z: mx.array, norm: mx.array, *, eps: float = 1e-6, stream: Stream = None) -> mx.array: ...
def delta_mixer(
    projection: mx.array,
    conv_weight: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    conv_state: mx.array | None,
    delta_state: mx.array | None,
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-6,
    mask: mx.array | None = None,
    stream: Stream = None,
) -> tuple[mx.array, mx.array, mx.array]: ...
def attention_prepare(
    projection: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    offset: int,
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    eps: float = 1e-6,
    positions: mx.array | None = None,
    stream: Stream = None,
) -> tuple[mx.array, mx.array, mx.array]: ...
def attention(
    q: mx.array,
    projection: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    length: int,
    scale: float,
    start: mx.array | None = None,
    stream: Stream = None,
) -> mx.array: ...
def sample(
    logits: mx.array,
    random: mx.array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    allowed: mx.array | None = None,
    prompt: mx.array | None = None,
    generated: mx.array | None = None,
    presence_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    stream: Stream = None,
) -> mx.array: ...
def fit_affine(
    weight: mx.array,
    importance: mx.array,
    bits: int,
    group_size: int,
    feedback: mx.array | None = None,
    order: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array, mx.array]: ...
def add_moments(sums: mx.array, x: mx.array, y: mx.array | None = None) -> None: ...
def factor_moments(sums: mx.array, order: mx.array, factor: float, damping: float) -> mx.array: ...
def solve_moments(values: mx.array, upper: mx.array, diagonal: mx.array, order: mx.array) -> None: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def cpu_threads() -> int: ...
def use_cpu_isa(isa: str) -> None: ...
def use_huge_pages(a: mx.array) -> bool: ...
def multiply_add(steps: int) -> int: ...
def read_all(a: mx.array) -> int: ...

class Launch:
    """One kernel launch of a plan: ``source`` is the very text that MLX compiles, ``kernel`` its name in there.

    ``library`` is the name under which MLX keeps it compiled; it carries the hash of the text.
    """

    kernel: str
    source: str
    library: str
    buffers: list[tuple[str, int]]
    params: bytes
    threadgroups: list[int]
    threads: list[int]

class Plan:
    """What a GPU does for an op. in_place: (output, input, whether to copy the input if others hold it)."""

    launches: list[Launch]
    scratch_bytes: list[int]
    in_place: list[tuple[int, int, bool]]

def plan(result: mx.array) -> tuple[Plan, list[mx.array]]: ...
def metal_source(file: str) -> str: ...
def qmm_mlx(
    x: mx.array,
    segments: Sequence[Matrix],
    *,
    norm: mx.array | None = None,
    eps: float = 1e-6,
    residual: mx.array | None = None,
    activation: str | None = None,
    stream: Stream = None,
) -> mx.array: ...
def attention_mlx(
    q: mx.array,
    projection: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    length: int,
    scale: float,
    start: mx.array | None = None,
    stream: Stream = None,
) -> mx.array: ...
def sample_mlx(
    logits: mx.array,
    random: mx.array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    allowed: mx.array | None = None,
    prompt: mx.array | None = None,
    generated: mx.array | None = None,
    presence_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    stream: Stream = None,
) -> mx.array: ...
def set_poison_outputs(on: bool) -> None: ...
