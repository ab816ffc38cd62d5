"""How many tokens may follow a prompt: as many as were asked for, and as the model has positions."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_delta.errors import ArgumentError


@dataclass(frozen=True)
class Limit:
    """tokens: how many may follow. warning: what to tell where positions, and not ``max_new_tokens``, end an answer."""

    tokens: int
    warning: str | None = None

    @classmethod
    def of(cls, prompt_tokens: int, max_new_tokens: int, positions: int | None, argument: str) -> Limit:
        """positions: the config's max_position_embeddings; beyond them a model was never trained, and writes nonsense.

        Raises: ArgumentError naming the ``argument`` whose prompt leaves no room for an answer.
        """
        if positions is None or prompt_tokens + max_new_tokens <= positions:
            return cls(max_new_tokens)
        if prompt_tokens >= positions:
            raise ArgumentError(
                f"{argument}: expected a prompt of less than {positions} tokens, the model's max_position_embeddings, "
                f"found {prompt_tokens}"
            )
        return cls(
            positions - prompt_tokens,
            f"the answer was cut where the model's positions end: {positions} (max_position_embeddings), "
            f"{prompt_tokens} of them the prompt's",
        )
