"""The head that predicts the token after next (multi-token prediction), which the checkpoints bring along.

    x = fc([RMSNorm(embedding of token i + 1) ; RMSNorm(hidden state of token i)])     slot i
    h = RMSNorm(layer(x))                                                              what the next slot may read
    logits = lm_head(h)                                                                of token i + 2

The hidden state is the model's, after its final norm. The layer is one of full attention over all slots so far, with
keys and values of its own. A chain of drafts goes on from ``h`` in the place of a hidden state that is not known yet.

Sources: vLLM ``qwen3_5_mtp.py``; llama.cpp pull request 24025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.config import TextConfig
from mlx_delta.model.cache import KeyValues
from mlx_delta.model.layers import AttentionLayer, FeedForward, Window, normed
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix

MTP = "mtp"  # canonical name of the head


@dataclass(frozen=True)
class MtpHead:
    """fc [hidden, 2 hidden]: columns of the embedding first. Norms float32 [hidden]."""

    config: TextConfig
    embedding_norm: mx.array
    hidden_norm: mx.array
    fc: Matrix
    layer: AttentionLayer
    norm: mx.array

    @classmethod
    def from_weights(cls, w: Weights, feed_forward: Callable[[Weights], FeedForward]) -> MtpHead:
        """w: the head's. Of several layers, which no published checkpoint has, the first alone is run."""
        layer = w.under("layers.0")
        return cls.of(w, AttentionLayer.from_weights(layer, feed_forward(layer)))

    @classmethod
    def of(cls, w: Weights, layer: AttentionLayer) -> MtpHead:
        """w: the head's, of which all but the layer is taken."""
        return cls(
            config=w.config.text,
            embedding_norm=w.parameter("pre_fc_norm_embedding.weight"),
            hidden_norm=w.parameter("pre_fc_norm_hidden.weight"),
            fc=w.matrix("fc"),
            layer=layer,
            norm=w.parameter("norm.weight"),
        )

    def __call__(
        self, embedded: mx.array, hidden: mx.array, state: KeyValues, offset: int, *, last: bool = False
    ) -> mx.array:
        """embedded, hidden [B, T, hidden] of T slots after ``offset`` earlier ones -> [B, T, hidden], before ``norm``.

        state: the layer's, advanced. last: of the last slot alone, [B, 1, hidden], for the others leave no more than
        keys and values: two thirds of the head's bytes are not multiplied by them.
        """
        eps = self.config.rms_norm_eps
        read = [normed(embedded, self.embedding_norm, eps), normed(hidden, self.hidden_norm, eps)]
        x = ops.qmm(mx.concatenate(read, axis=-1).astype(embedded.dtype), (self.fc,))
        mixed = self.layer.mix_projected(self.layer.project(x), state, Window(offset))
        return self.layer.finish(mixed[:, -1:], x[:, -1:]) if last else self.layer.finish(mixed, x)

    def hidden(self, x: mx.array) -> mx.array:
        """What the next slot reads instead of the model's hidden state, from what ``__call__`` gave."""
        return normed(x, self.norm, self.config.rms_norm_eps).astype(x.dtype)

    @property
    def bytes_per_draft(self) -> int:
        """Bytes of its matrices that a draft reads, besides lm_head's: of experts those chosen."""
        return self.fc.nbytes + sum(stage.bytes_per_token for stage in self.layer.stages())
