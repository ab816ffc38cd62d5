"""The two kinds of layer and the MLP, as the few fused ops that they are: x [B, T, hidden] -> x, cache advanced.

A layer is a mixer and what comes after it, a ``FeedForward``: ``Mlp``, or what another architecture has.

    gated-delta layer   qmm -> delta_mixer -> qmm, MLP          (prefill: conv1d, gated_delta, gated_norm)
    attention layer     qmm -> attention_prepare -> attention -> qmm, MLP
                        of several sequences: delta_mixer_rows; attention_rows, which is both ops
    MLP                 qmm (gate and up, SwiGLU) -> qmm (down)

RMSNorm is a prologue and the residual an epilogue of qmm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import mlx.core as mx

from mlx_delta import ops
from mlx_delta._core import DECODE_TOKENS
from mlx_delta.config import TextConfig
from mlx_delta.model.cache import DeltaState, KeyValues, LayerState
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix


@dataclass(frozen=True)
class Window:
    """Which tokens a forward pass adds: ``offset`` tokens came before; mask [B, T] and start [B] of
    left-padded batches; positions [B, T], or [3, B, T] (T, H, W) where there are pictures; None: from offset on."""

    offset: int
    mask: mx.array | None = None
    start: mx.array | None = None
    positions: mx.array | None = None


@dataclass(frozen=True)
class Rows:
    """Of which sequences the R rows of a pass are: ``counts`` of each, one after the other, after ``offsets`` tokens.
    positions [3, R] (T, H, W); None: from each offset on."""

    counts: Sequence[int]
    offsets: Sequence[int]
    positions: mx.array | None = None


@dataclass(frozen=True)
class Routing:
    """Matrices of which each token takes some, an expert's rows [N, K] of [E * N, K].

    choose: of the residual stream x [B, T, hidden], the experts uint32 [B, T, k], and what they count, float32
    [B, T, >= k]. reads: what, float32 [n, K], an expert's rows read of tokens x [n, hidden]. part: of the matrices that
    a token takes.
    """

    choose: Callable[[mx.array], tuple[mx.array, mx.array]]
    reads: Callable[[mx.array, int], mx.array]
    part: Fraction


def all_of(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


@dataclass(frozen=True)
class Stage:
    """Matrices of a layer, by their names within it, that read the same.

    reads: what, float32, of the residual stream x [B, T, hidden] of sequences from their beginning, as it enters this
    stage. adds: whether their product is added to the stream; onto: float32, to what of it. routing: of experts, which
    read what it says instead.
    """

    matrices: Mapping[str, Matrix]
    reads: Callable[[mx.array], mx.array]
    adds: bool = False
    onto: Callable[[mx.array], mx.array] = all_of
    routing: Routing | None = None

    @property
    def bytes_per_token(self) -> int:
        nbytes = sum(matrix.nbytes for matrix in self.matrices.values())
        return nbytes if self.routing is None else int(self.routing.part * nbytes)


Join = Callable[[mx.array, Matrix, mx.array], mx.array]


def added(read: mx.array, matrix: Matrix, x: mx.array) -> mx.array:
    """x + read @ matrix^T: how what a mixer or an MLP has made joins the residual stream x.

    A field of layers, for where a matrix lies on several machines the products are summed first (``distributed``).
    """
    return ops.qmm(read, (matrix,), residual=x)


class FeedForward(Protocol):
    """What follows the mixer of a layer: x [B, T, hidden] -> x, its residual added."""

    def __call__(self, x: mx.array, eps: float) -> mx.array: ...

    def stages(self, eps: float) -> list[Stage]: ...


@dataclass(frozen=True)
class Mlp:
    """x + down(silu(gate(h)) * up(h)), h = RMSNorm(x)."""

    norm: mx.array
    gate: Matrix
    up: Matrix
    down: Matrix
    join: Join = added

    @classmethod
    def from_weights(cls, w: Weights) -> Mlp:
        """w: a layer's."""
        return cls(
            norm=w.parameter("post_attention_layernorm.weight"),
            gate=w.matrix("mlp.gate_proj"),
            up=w.matrix("mlp.up_proj"),
            down=w.matrix("mlp.down_proj"),
        )

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        return self.join(self.activations(x, eps), self.down, x)

    def activations(self, x: mx.array, eps: float) -> mx.array:
        """What down reads."""
        return ops.qmm(x, (self.gate, self.up), norm=self.norm, eps=eps, activation="swiglu")

    def stages(self, eps: float) -> list[Stage]:
        return [
            Stage({"mlp.gate_proj": self.gate, "mlp.up_proj": self.up}, lambda x: normed(x, self.norm, eps)),
            Stage({"mlp.down_proj": self.down}, lambda x: self.activations(x.astype(mx.float32), eps), adds=True),
        ]


@dataclass(frozen=True)
class DeltaLayer:
    """Gated DeltaNet and MLP. Small parameters are float32: conv [C, 4], A_log, dt_bias [Hv], gated_norm [Dv]."""

    config: TextConfig
    norm: mx.array
    in_proj: tuple[Matrix, Matrix, Matrix, Matrix]  # qkv, z, b, a
    conv: mx.array
    A_log: mx.array
    dt_bias: mx.array
    gated_norm: mx.array
    out_proj: Matrix
    feed_forward: FeedForward
    join: Join = added

    @classmethod
    def from_weights(cls, w: Weights, feed_forward: FeedForward) -> DeltaLayer:
        """w: a layer's."""
        text, delta = w.config.text, w.under("linear_attn")
        qkv, z, b, a = (delta.matrix(f"in_proj_{name}") for name in ("qkv", "z", "b", "a"))
        return cls(
            config=text,
            norm=w.parameter("input_layernorm.weight"),
            in_proj=(qkv, z, b, a),
            conv=delta.parameter("conv1d.weight").reshape(text.conv_dim, -1),
            A_log=delta.parameter("A_log"),
            dt_bias=delta.parameter("dt_bias"),
            gated_norm=delta.parameter("norm.weight"),
            out_proj=delta.matrix("out_proj"),
            feed_forward=feed_forward,
        )

    def __call__(self, x: mx.array, state: LayerState, window: Window) -> mx.array:
        return self.finish(self.mix_projected(self.project(x), state, window), x)

    def finish(self, mixed: mx.array, x: mx.array) -> mx.array:
        """out_proj of what was mixed, added to the residual x, and what follows."""
        return self.feed_forward(self.join(mixed, self.out_proj, x), self.config.rms_norm_eps)

    def stages(self) -> list[Stage]:
        eps, names = self.config.rms_norm_eps, (f"linear_attn.in_proj_{name}" for name in ("qkv", "z", "b", "a"))
        return [
            Stage(dict(zip(names, self.in_proj, strict=True)), lambda x: normed(x, self.norm, eps)),
            Stage({"linear_attn.out_proj": self.out_proj}, lambda x: self._mixed(x, DeltaState()), adds=True),
            *self.feed_forward.stages(eps),
        ]

    def _mixed(self, x: mx.array, state: LayerState) -> mx.array:
        return self.mix(x.astype(mx.float32), state, Window(0))

    def mix(self, x: mx.array, state: LayerState, window: Window) -> mx.array:
        """What out_proj reads."""
        return self.mix_projected(self.project(x), state, window)

    def project(self, x: mx.array) -> mx.array:
        return ops.qmm(x, self.in_proj, norm=self.norm, eps=self.config.rms_norm_eps)

    def mix_projected(self, projection: mx.array, state: LayerState, window: Window) -> mx.array:
        assert isinstance(state, DeltaState)
        if projection.shape[1] <= DECODE_TOKENS:
            return self._decode(projection, state, window.mask)
        if (pending := state.counted()) is not None:
            state.pending = None
            self._decode(pending, state)
        return self._prefill(projection, state, window)

    def mix_rows(self, projection: mx.array, states: Sequence[LayerState], rows: Rows) -> mx.array:
        """``mix_projected`` of several sequences, no two of them one: projection [R, 1, ..] -> [R, 1, Hv Dv]."""
        of = [state for state in states if isinstance(state, DeltaState)]
        y, convs, deltas = ops.delta_mixer_rows(
            projection,
            *self._parameters,
            [state.conv for state in of],
            [state.delta for state in of],
            key_heads=self.config.linear_num_key_heads,
            key_dim=self.config.linear_key_head_dim,
            eps=self.config.rms_norm_eps,
            counts=rows.counts,
            pending=[state.counted() for state in of],
            keep=[not state.drafting for state in of],
        )
        first = 0
        for state, count, conv, delta in zip(of, rows.counts, convs, deltas, strict=True):
            state.conv, state.delta = conv, delta
            state.pending = projection[first : first + count].reshape(1, count, -1) if state.drafting else None
            first += count
        return y

    def _decode(self, projection: mx.array, state: DeltaState, mask: mx.array | None = None) -> mx.array:
        y, state.conv, state.delta = ops.delta_mixer(
            projection,
            *self._parameters,
            state.conv,
            state.delta,
            key_heads=self.config.linear_num_key_heads,
            key_dim=self.config.linear_key_head_dim,
            eps=self.config.rms_norm_eps,
            mask=mask,
            pending=state.counted(),
            keep=not state.drafting,
        )
        state.pending = projection if state.drafting else None
        return y

    @property
    def _parameters(self) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        return self.conv, self.A_log, self.dt_bias, self.gated_norm

    def _prefill(self, projection: mx.array, state: DeltaState, window: Window) -> mx.array:
        c = self.config
        B, T, _ = projection.shape
        key_shape = (B, T, c.linear_num_key_heads, c.linear_key_head_dim)
        value_shape = (B, T, c.linear_num_value_heads, c.linear_value_head_dim)
        splits = [c.conv_dim, c.conv_dim + c.value_dim, c.conv_dim + c.value_dim + c.linear_num_value_heads]
        qkv, z, b, a = mx.split(projection, splits, axis=-1)
        qkv, state.conv = ops.conv1d(qkv, self.conv, state.conv, mask=window.mask)
        keys = key_shape[2] * key_shape[3]
        q, k, v = mx.split(qkv, [keys, 2 * keys], axis=-1)
        y, state.delta = ops.gated_delta(
            q.reshape(key_shape),
            k.reshape(key_shape),
            v.reshape(value_shape),
            a,
            b,
            self.A_log,
            self.dt_bias,
            state.delta,
            mask=window.mask,
        )
        y = ops.gated_norm(y, z.reshape(value_shape), self.gated_norm, eps=c.rms_norm_eps)
        return y.reshape(B, T, c.value_dim)


@dataclass(frozen=True)
class AttentionLayer:
    """Gated full attention and MLP. q_norm, k_norm float32 [D]."""

    config: TextConfig
    norm: mx.array
    qkv_proj: tuple[Matrix, Matrix, Matrix]  # q with its gate per head, k, v
    q_norm: mx.array
    k_norm: mx.array
    o_proj: Matrix
    feed_forward: FeedForward
    join: Join = added

    @classmethod
    def from_weights(cls, w: Weights, feed_forward: FeedForward) -> AttentionLayer:
        """w: a layer's."""
        attention = w.under("self_attn")
        q, k, v = (attention.matrix(f"{name}_proj") for name in "qkv")
        return cls(
            config=w.config.text,
            norm=w.parameter("input_layernorm.weight"),
            qkv_proj=(q, k, v),
            q_norm=attention.parameter("q_norm.weight"),
            k_norm=attention.parameter("k_norm.weight"),
            o_proj=attention.matrix("o_proj"),
            feed_forward=feed_forward,
        )

    def __call__(self, x: mx.array, cache: LayerState, window: Window) -> mx.array:
        return self.finish(self.mix_projected(self.project(x), cache, window), x)

    def finish(self, mixed: mx.array, x: mx.array) -> mx.array:
        """o_proj of what was mixed, added to the residual x, and what follows."""
        return self.feed_forward(self.join(mixed, self.o_proj, x), self.config.rms_norm_eps)

    def stages(self) -> list[Stage]:
        eps, names = self.config.rms_norm_eps, (f"self_attn.{name}_proj" for name in "qkv")
        return [
            Stage(dict(zip(names, self.qkv_proj, strict=True)), lambda x: normed(x, self.norm, eps)),
            Stage({"self_attn.o_proj": self.o_proj}, lambda x: self._mixed(x, KeyValues()), adds=True),
            *self.feed_forward.stages(eps),
        ]

    def _mixed(self, x: mx.array, cache: LayerState) -> mx.array:
        return self.mix(x.astype(mx.float32), cache, Window(0))

    def mix(self, x: mx.array, cache: LayerState, window: Window) -> mx.array:
        """What o_proj reads."""
        return self.mix_projected(self.project(x), cache, window)

    def project(self, x: mx.array) -> mx.array:
        return ops.qmm(x, self.qkv_proj, norm=self.norm, eps=self.config.rms_norm_eps)

    def mix_projected(self, projection: mx.array, cache: LayerState, window: Window) -> mx.array:
        assert isinstance(cache, KeyValues)
        c = self.config
        B, T, _ = projection.shape
        length = window.offset + T
        keys, values = cache.reserve((B, c.num_key_value_heads, length, c.head_dim), window.offset, projection.dtype)
        q, cache.keys, cache.values = ops.attention_prepare(
            projection,
            self.q_norm,
            self.k_norm,
            keys,
            values,
            offset=window.offset,
            rope_theta=c.rope.theta,
            rope_dim=c.rope.dim,
            rope_sections=c.rope.sections,
            eps=c.rms_norm_eps,
            positions=window.positions,
        )
        return ops.attention(
            q, projection, cache.keys, cache.values, length=length, scale=c.head_dim**-0.5, start=window.start
        )

    def mix_rows(self, projection: mx.array, states: Sequence[LayerState], rows: Rows) -> mx.array:
        """``mix_projected`` of several sequences, no two of them one: projection [R, 1, ..] -> [R, 1, Hq D]."""
        c, of = self.config, [state for state in states if isinstance(state, KeyValues)]
        room = [
            state.reserve((1, c.num_key_value_heads, offset + count, c.head_dim), offset, projection.dtype)
            for state, offset, count in zip(of, rows.offsets, rows.counts, strict=True)
        ]
        y, keys, values = ops.attention_rows(
            projection,
            self.q_norm,
            self.k_norm,
            [keys for keys, _ in room],
            [values for _, values in room],
            offsets=rows.offsets,
            rope_theta=c.rope.theta,
            rope_dim=c.rope.dim,
            rope_sections=c.rope.sections,
            scale=c.head_dim**-0.5,
            eps=c.rms_norm_eps,
            counts=rows.counts,
            positions=rows.positions,
        )
        for state, state_keys, state_values in zip(of, keys, values, strict=True):
            state.keys, state.values = state_keys, state_values
        return y


Layer = DeltaLayer | AttentionLayer


def hybrid_layer(w: Weights, index: int, feed_forward: Callable[[Weights], FeedForward]) -> Layer:
    """The layer of that number, of a text model that mixes both kinds. w: those of all layers, by number."""
    weights = w.under(str(index))
    kind = AttentionLayer if w.config.text.layer_types[index] == "full_attention" else DeltaLayer
    return kind.from_weights(weights, feed_forward(weights))


def matrices(layer: Layer) -> Iterator[tuple[str, Matrix]]:
    """Every matrix of a layer, by its name within it."""
    for stage in layer.stages():
        yield from stage.matrices.items()


def normed(x: mx.array, norm: mx.array, eps: float) -> mx.array:
    """RMSNorm in float32, as qmm does it before it multiplies."""
    return mx.fast.rms_norm(x.astype(mx.float32), norm, eps)
