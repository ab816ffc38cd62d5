"""A mixture of experts as the feed-forward of a layer.

route     softmax over all experts, the k largest of it, and the gate of the shared expert
experts   gate and up of the chosen experts with SwiGLU; down, weighted, summed and added
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.errors import ArgumentError
from mlx_delta.model.layers import Stage, normed
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix

EXPERTS = ".switch_mlp."  # in the canonical names of what all experts of a layer have, [E, N, K]


@dataclass(frozen=True)
class Experts:
    """x + sum_i weight_i expert_i(h) + sigmoid(shared_gate h) shared(h), h = RMSNorm(x).

    An expert is down(silu(gate(h)) * up(h)); the matrices of all E experts lie one below the other, [E * N, K].
    """

    norm: mx.array
    chosen: int  # k
    router: Matrix
    shared_gate: Matrix
    experts: tuple[Matrix, Matrix, Matrix]  # gate, up, down
    shared: tuple[Matrix, Matrix, Matrix]

    @classmethod
    def from_weights(cls, w: Weights) -> Experts:
        """w: a layer's."""
        assert w.config.text.experts is not None
        mlp = w.under("mlp")

        def three(name: str) -> tuple[Matrix, Matrix, Matrix]:
            of = mlp.under(name)
            return of.matrix("gate_proj"), of.matrix("up_proj"), of.matrix("down_proj")

        return cls(
            norm=w.parameter("post_attention_layernorm.weight"),
            chosen=w.config.text.experts.chosen,
            router=mlp.matrix("gate"),
            shared_gate=mlp.matrix("shared_expert_gate"),
            experts=three("switch_mlp"),
            shared=three("shared_expert"),
        )

    def __call__(self, x: mx.array, eps: float) -> mx.array:
        chosen, weights = self.route(x, eps)
        return ops.experts(x, chosen, weights, self.experts, self.shared, self.norm, eps=eps)

    def route(self, x: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        """uint32 [.., k], the experts of each token; float32 [.., k + 1], their weights and the shared expert's."""
        return ops.route(x, self.router, self.shared_gate, self.norm, chosen=self.chosen, eps=eps)

    def stages(self, eps: float) -> list[Stage]:
        def named(module: str, *matrices: Matrix) -> dict[str, Matrix]:
            names = ("gate_proj", "up_proj") if len(matrices) == 2 else ("down_proj",)
            return {f"mlp.{module}.{name}": matrix for name, matrix in zip(names, matrices, strict=True)}

        def reads(x: mx.array) -> mx.array:
            return normed(x, self.norm, eps)

        gate, up, down = self.experts
        shared_gate, shared_up, shared_down = self.shared
        part = Fraction(self.chosen, self.router.rows)
        return [
            Stage({"mlp.gate": self.router, "mlp.shared_expert_gate": self.shared_gate}, reads),
            Stage(named("shared_expert", shared_gate, shared_up), reads),
            Stage(named("switch_mlp", gate, up), reads, part=part),
            Stage(named("shared_expert", shared_down), self._no_one_input, adds=True),
            Stage(named("switch_mlp", down), self._no_one_input, adds=True, part=part),
        ]

    def _no_one_input(self, x: mx.array) -> mx.array:
        raise ArgumentError("calibration: expected a model without experts, found one whose experts read their own")
