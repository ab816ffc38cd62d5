"""Wrong arguments: a ValueError that names the op, the argument, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_delta import ops
from mlx_delta.bench.cases import CASES, Arguments
from mlx_delta.ops import Matrix

X = mx.zeros((2, 64))
W = mx.zeros((5, 64))


def change(case: str, **new: object) -> Callable[[], object]:
    """A call of the case with some arguments replaced; a callable is given the old value."""

    def call() -> object:
        found = next(c for c in CASES if c.id == case)
        arguments: Arguments = found.arguments(mx.float32)
        for name, value in new.items():
            arguments[name] = value(arguments[name]) if callable(value) else value
        return found.run(arguments)

    return call


GDN, MIXER, CONV = "gated_delta-b2t5h2x2d64", "delta_mixer-b1t1h2x1d64", "conv1d-b1t3c33"
ROUTE, EXPERTS = "route-float32", "experts-plain"
PREPARE, ATTEND = "attention_prepare-b2t5h6:2d64at0axes0", "attention-b2t1h6:2d64l70"

WRONG = {
    "qmm x dtype": (lambda: ops.qmm(X.astype(mx.int32), [W]), r"qmm: x: expected float32, .*, found int32 \[2, 64\]"),
    "qmm K": (lambda: ops.qmm(X[:, :32], [W]), r"qmm: segments: expected K = 32 columns .*, found Matrix\(\[5, 64\]"),
    "qmm no segment": (lambda: ops.qmm(X, []), r"qmm: segments: expected 1 to 8 matrices, found 0"),
    "qmm norm": (lambda: ops.qmm(X, [W], norm=mx.ones(63)), r"qmm: norm: expected shape \[64\], found float32 \[63\]"),
    "qmm eps": (lambda: ops.qmm(X, [W], norm=mx.ones(64), eps=0.0), "qmm: eps: expected a positive number"),
    "qmm residual": (lambda: ops.qmm(X, [W], residual=X), r"qmm: residual: expected shape \[2, 5\], found .*\[2, 64\]"),
    "qmm residual dtype": (
        lambda: ops.qmm(X, [W], residual=mx.zeros((2, 5), mx.float16)),
        r"qmm: residual: expected float32, found float16 \[2, 5\]",
    ),
    "qmm activation": (
        lambda: ops.qmm(X, [W], activation="gelu"),
        "activation: expected 'swiglu' or None, found 'gelu'",
    ),
    "qmm swiglu": (
        lambda: ops.qmm(X, [W, W[:4]], activation="swiglu"),
        "qmm: segments: expected a gate and an up matrix with as many rows",
    ),
    "qmm empty": (lambda: ops.qmm(X[:0], [W]), r"qmm: x: expected non-empty \[.., K\], found float32 \[0, 64\]"),
    "matrix bits": (lambda: Matrix.affine(W, W, W, 7, 64), "Matrix: bits: expected 2, 3, 4, 5, 6 or 8, found 7"),
    "matrix group": (lambda: Matrix.affine(W, W, W, 4, 48), "Matrix: group_size: expected 32, 64 or 128, found 48"),
    "matrix unpacked": (
        lambda: Matrix.affine(W, W, W, 4, 64),
        r"Matrix: weight: expected uint32, found float32 \[5, 64\]",
    ),
    "matrix width": (
        lambda: Matrix.affine(mx.zeros((5, 8), mx.uint32), W[:, :1], W[:, :1], 3, 64),
        r"Matrix: weight: expected shape \[5, 6\], found uint32 \[5, 8\]",
    ),
    "matrix biases": (
        lambda: Matrix.affine(mx.zeros((5, 8), mx.uint32), W[:, :1], W[:4, :1], 4, 64),
        r"Matrix: biases: expected shape \[5, 1\], found float32 \[4, 1\]",
    ),
    "matrix plain": (
        lambda: Matrix.plain(mx.zeros((2, 2), mx.int8)),
        "Matrix: weight: expected float32, float16 or bf",
    ),
    "gated_norm y": (lambda: ops.gated_norm(X[:0], X[:0], W[0]), r"gated_norm: y: expected non-empty \[.., D\], found"),
    "gated_norm z": (lambda: ops.gated_norm(X, X[:1], W[0]), r"gated_norm: z: expected shape \[2, 64\], found float32"),
    "gated_norm dtype": (
        lambda: ops.gated_norm(X, X.astype(mx.float16), W[0]),
        "gated_norm: z: expected float32, found float16",
    ),
    "gated_norm norm": (lambda: ops.gated_norm(X, X, W), r"gated_norm: norm: expected shape \[64\], found .*\[5, 64\]"),
    "gated_norm eps": (lambda: ops.gated_norm(X, X, W[0], eps=0.0), "gated_norm: eps: expected a positive number"),
    "sample logits": (lambda: ops.sample(X[0]), r"sample: logits: expected non-empty \[B, V\], found float32 \[64\]"),
    "sample random": (
        lambda: ops.sample(X, mx.zeros((3,), mx.uint64)),
        r"sample: random: expected shape \[2\], found uint64 \[3\]",
    ),
    "sample random dtype": (
        lambda: ops.sample(X, mx.zeros((2,), mx.uint32)),
        r"sample: random: expected uint64, found uint32 \[2\]",
    ),
    "sample vocab_size": (lambda: ops.sample(X, vocab_size=65), "sample: vocab_size: expected 1 to 64, found 65"),
    "sample large": (lambda: ops.sample(mx.zeros((1, 2**20 + 1))), "sample: vocab_size: expected at most 1048576 tok"),
    "sample allowed": (
        lambda: ops.sample(X, allowed=mx.ones((2, 64), mx.bool_), vocab_size=60),
        r"sample: allowed: expected shape \[2, 60\], found bool \[2, 64\]",
    ),
    "sample prompt": (
        lambda: ops.sample(X, prompt=mx.ones((1, 64))),
        r"sample: prompt: expected bool, found float32 \[1, 64\]",
    ),
    "sample temperature": (lambda: ops.sample(X, temperature=0), "sample: temperature: expected a positive number"),
    "sample top_k": (lambda: ops.sample(X, top_k=-1), "sample: top_k: expected 0 or more, found -1"),
    "sample top_p": (lambda: ops.sample(X, top_p=0), "sample: top_p: expected above 0, at most 1, found 0"),
    "sample min_p": (lambda: ops.sample(X, min_p=2), "sample: min_p: expected 0 to 1, found 2"),
    "sample presence": (
        lambda: ops.sample(X, presence_penalty=float("nan")),
        "sample: presence_penalty: expected a finite number, found nan",
    ),
    "sample repetition": (
        lambda: ops.sample(X, repetition_penalty=0),
        "sample: repetition_penalty: expected a positive number",
    ),
    "route router": (
        change(ROUTE, router=lambda m: Matrix.plain(W)),
        r"route: router: expected K = 200 columns as x has, found Matrix\(\[5, 64\]",
    ),
    "route shared_gate": (
        change(ROUTE, shared_gate=lambda m: Matrix.plain(mx.zeros((2, 200)))),
        r"route: shared_gate: expected \[1, 200\], found Matrix\(\[2, 200\]",
    ),
    "route chosen": (change(ROUTE, chosen=8), "route: chosen: expected 1 to the router's 7 rows, found 8"),
    "route norm": (change(ROUTE, norm=W[0]), r"route: norm: expected shape \[200\], found float32 \[64\]"),
    "route x": (change(ROUTE, x=X[:0]), r"route: x: expected non-empty \[.., K\], found float32 \[0, 64\]"),
    "experts matrices": (
        change(EXPERTS, matrices=lambda m: m[:2]),
        "experts: matrices: expected gate, up and down, down with a multiple of K = 72 rows, found 2 matrices",
    ),
    "experts sizes": (
        change(EXPERTS, matrices=lambda m: [m[0], m[0], m[1]]),
        "experts: matrices: expected gate, up and down",
    ),
    "experts shared": (
        change(EXPERTS, shared=lambda m: [m[0], m[1], m[1]]),
        r"experts: shared: expected gate, up and down of one size, with K = 72, found Matrix\(\[24, 72\]",
    ),
    "experts chosen": (
        change(EXPERTS, chosen=lambda c: c[:4]),
        r"experts: chosen: expected shape \[5, 2\], found uint32 \[4, 2\]",
    ),
    "experts chosen dtype": (
        change(EXPERTS, chosen=lambda c: c.astype(mx.int32)),
        "experts: chosen: expected uint32, found int32",
    ),
    "experts weights": (
        change(EXPERTS, weights=lambda w: w[:, :2]),
        r"experts: weights: expected shape \[5, 3\], found float32 \[5, 2\]",
    ),
    "experts norm": (change(EXPERTS, norm=W[0]), r"experts: norm: expected shape \[72\], found float32 \[64\]"),
    "experts eps": (change(EXPERTS, eps=0.0), "experts: eps: expected a positive number"),
    "embedding tokens": (
        lambda: ops.embedding(mx.zeros((2,)), Matrix.plain(W), mx.float32),
        r"embedding: tokens: expected a non-empty array of integers, found float32 \[2\]",
    ),
    "embedding dtype": (
        lambda: ops.embedding(mx.array([1]), Matrix.plain(W), mx.int32),
        "embedding: dtype: expected float32, float16 or bfloat16",
    ),
    "conv1d weight": (
        change(CONV, weight=lambda w: w[:, :3]),
        r"conv1d: weight: expected shape \[33, 4\], found .*\[33, 3\]",
    ),
    "conv1d state": (change(CONV, state=lambda s: s[:, 1:]), r"conv1d: conv state: expected shape \[1, 3, 33\]"),
    "conv1d state dtype": (
        change(CONV, state=lambda s: s.astype(mx.bfloat16)),
        "conv1d: conv state: expected float32, found bfloat16",
    ),
    "conv1d mask": (change(CONV, mask=mx.ones((1, 2), mx.bool_)), r"conv1d: mask: expected shape \[1, 3\], found bool"),
    "conv1d mask dtype": (change(CONV, mask=mx.ones((1, 3))), "conv1d: mask: expected bool"),
    "gated_delta k": (change(GDN, k=lambda k: k[:, :4]), r"gated_delta: k: expected shape \[2, 5, 2, 64\], found"),
    "gated_delta heads": (
        change(GDN, v=lambda v: v[:, :, :3], a=lambda a: a[..., :3], b=lambda b: b[..., :3]),
        "gated_delta: heads: expected value heads a multiple of key heads, found 3 and 2",
    ),
    "gated_delta dtype": (
        change(GDN, v=lambda v: v.astype(mx.float16)),
        "gated_delta: v: expected float32, found float16",
    ),
    "gated_delta state": (
        change(GDN, state=lambda s: s.astype(mx.bfloat16)),
        "gated_delta: delta state: expected float32, found bfloat16",
    ),
    "delta_mixer projection": (
        change(MIXER, projection=lambda p: p[..., 1:]),
        r"delta_mixer: projection: expected shape \[1, 1, 516\], found float32 \[1, 1, 515\]",
    ),
    "delta_mixer heads": (change(MIXER, key_heads=0), "delta_mixer: heads: expected value heads a multiple"),
    "prepare offset": (change(PREPARE, offset=12), r"attention_prepare: offset: expected 0 to 11 .*, found 12"),
    "prepare projection": (
        change(PREPARE, projection=lambda p: p[..., :-1]),
        r"attention_prepare: projection: expected \[B, T, \(2 Hq \+ 2 Hkv\) D\]",
    ),
    "prepare rope": (change(PREPARE, rope_dim=66), "attention_prepare: rope_dim: expected an even number up to"),
    "prepare sections": (change(PREPARE, rope_sections=(1, 1, 1)), "rope_sections: expected three counts adding up to"),
    "prepare positions": (
        change(PREPARE, positions=mx.zeros((2, 2, 5), mx.int32)),
        r"attention_prepare: positions: expected shape \[3, 2, 5\], found int32 \[2, 2, 5\]",
    ),
    "attention length": (change(ATTEND, length=101), "attention: length: expected 1 to 100, found 101"),
    "attention values": (
        change(ATTEND, values=lambda v: v[:1]),
        r"attention: values: expected shape \[2, 2, 100, 64\]",
    ),
    "attention gate": (
        change(ATTEND, projection=lambda p: p[..., :700]),
        "attention: projection: expected at least 2 Hq D = 768 columns",
    ),
    "attention start": (change(ATTEND, start=mx.zeros((3,), mx.int32)), r"attention: start: expected shape \[2\]"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
