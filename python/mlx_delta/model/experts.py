"""A mixture of experts as the feed-forward of a layer.

route     softmax over all experts, the k largest of it, and the gate of the shared expert
experts   gate and up of the chosen experts with SwiGLU; down, weighted, summed and added
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.model.layers import Routing, Stage, normed
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix
from mlx_delta.ops.experts import expert_rows

EXPERTS = ".switch_mlp."  # in the canonical names of what all experts of a layer have, [E, N, K]

Gated = tuple[Matrix, Matrix, Matrix]  # gate, up, down


def gated(w: Weights) -> Gated:
    """The matrices of an expert, or of all of a layer."""
    return w.matrix("gate_proj"), w.matrix("up_proj"), w.matrix("down_proj")


@dataclass(frozen=True)
class Experts:
    """x + sum_i weight_i expert_i(h) + sigmoid(shared_gate h) shared(h), h = RMSNorm(x).

    An expert is down(silu(gate(h)) * up(h)); the matrices of all E experts lie one below the other, [E * N, K].
    """

    norm: mx.array
    chosen: int  # k
    router: Matrix
    shared_gate: Matrix
    experts: Gated
    shared: Gated

    @classmethod
    def from_weights(cls, w: Weights) -> Experts:
        """w: a layer's."""
        mlp = w.under("mlp")
        return cls.of(w, gated(mlp.under("switch_mlp")), gated(mlp.under("shared_expert")))

    @classmethod
    def of(cls, w: Weights, experts: Gated, shared: Gated) -> Experts:
        """w: a layer's, of which all but these matrices is taken."""
        assert w.config.text.experts is not None
        mlp = w.under("mlp")
        return cls(
            norm=w.parameter("post_attention_layernorm.weight"),
            chosen=w.config.text.experts.chosen,
            router=mlp.matrix("gate"),
            shared_gate=mlp.matrix("shared_expert_gate"),
            experts=experts,
            shared=shared,
        )

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        chosen, weights = self.route(x, eps)
        return ops.experts(x, chosen, weights, self.experts, self.shared, self.norm, eps=eps)

    def route(self, x: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        """uint32 [.., k], the experts of each token; float32 [.., k + 1], their weights and the shared expert's."""
        return ops.route(x, self.router, self.shared_gate, self.norm, chosen=self.chosen, eps=eps)

    def stages(self, eps: float) -> list[Stage]:
        gate, up, down = self.experts
        shared_gate, shared_up, shared_down = self.shared
        part, count = Fraction(self.chosen, self.router.rows), self.router.rows

        def reads(x: mx.array) -> mx.array:
            return normed(x, self.norm, eps)

        def choose(x: mx.array) -> tuple[mx.array, mx.array]:
            return self.route(x.astype(mx.float32), eps)

        def inner(x: mx.array, matrices: Sequence[Matrix]) -> mx.array:
            return ops.qmm(x.astype(mx.float32), matrices, norm=self.norm, eps=eps, activation="swiglu")

        def inner_of(x: mx.array, expert: int) -> mx.array:
            return inner(x, expert_rows((gate, up), expert, count))

        def shared_inner(x: mx.array) -> mx.array:
            return inner(x, (shared_gate, shared_up)) * choose(x)[1][..., -1:]

        def without_shared(x: mx.array) -> mx.array:
            chosen, weights = choose(x)
            weights = mx.concatenate([weights[..., :-1], mx.zeros_like(weights[..., -1:])], axis=-1)
            return ops.experts(x.astype(mx.float32), chosen, weights, self.experts, self.shared, self.norm, eps=eps)

        of_x, of_inner = Routing(choose, lambda x, _: reads(x), part), Routing(choose, inner_of, part)
        routed, shared = "mlp.switch_mlp", "mlp.shared_expert"
        return [
            Stage({"mlp.gate": self.router, "mlp.shared_expert_gate": self.shared_gate}, reads),
            Stage({f"{routed}.gate_proj": gate, f"{routed}.up_proj": up}, reads, routing=of_x),
            Stage({f"{routed}.down_proj": down}, reads, routing=of_inner),
            Stage({f"{shared}.gate_proj": shared_gate, f"{shared}.up_proj": shared_up}, reads),
            Stage({f"{shared}.down_proj": shared_down}, shared_inner, adds=True, onto=without_shared),
        ]
