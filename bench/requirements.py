"""Memory that each published size needs, and the speed that bandwidth allows: tables of README and docs/memory.md.

    python -m bench.requirements

All of it is computed from the published configs and the recipes; nothing is measured. A GB is 10^9 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_delta.bench.random_model import recipe_plans
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.config import TextConfig
from mlx_delta.summary import kv_bytes_per_token, state_bytes

# A token reads a part of a model with experts: its speed is no matter of its size.
DENSE = [size for size, config in CONFIGS.items() if "model_type" not in config]
RECIPES: dict[str, tuple[str | None, int | None]] = {
    "unsloth, 3 bits": ("unsloth", 3),
    "4 bits": (None, 4),
    "8 bits": (None, 8),
}
CONTEXTS = (4096, 32768, 131072, 262144)
# Memory bandwidth as Apple states it, GB/s, of each chip's largest variant.
CHIPS = {
    "M1": 68,
    "M2, M3": 100,
    "M4": 120,
    "M3 Pro": 150,
    "M5": 153,
    "M1 Pro, M2 Pro": 200,
    "M4 Pro": 273,
    "M1 Max, M2 Max, M3 Max": 400,
    "M4 Max": 546,
    "M1 Ultra, M2 Ultra": 800,
    "M3 Ultra": 819,
}


@dataclass(frozen=True)
class Model:
    """A published size after a recipe (None: as published): bytes of its text model, and those that a token reads."""

    size: str
    text: TextConfig
    weights: int
    read: int

    @classmethod
    def of(cls, size: str, recipe: str | None) -> Model:
        config, plans = recipe_plans(size, *RECIPES[recipe or "8 bits"])
        nbytes = {plan.name: plan.nbytes if recipe else 2 * math.prod(plan.shape) for plan in plans}
        embedding = sum(n for name, n in nbytes.items() if "embed_tokens" in name)
        once = 0 if config.text.tie_word_embeddings else embedding - embedding // config.text.vocab_size
        return cls(size, config.text, sum(nbytes.values()), sum(nbytes.values()) - once)

    def memory(self, context: int) -> int:
        """Weights, and the states, keys and values of one sequence of so many tokens."""
        return self.weights + state_bytes(self.text) + context * kv_bytes_per_token(self.text)


def memory_by_recipe() -> list[str]:
    """Rows of a Markdown table: weights and one sequence of 32,768 tokens, GB."""
    rows = []
    for size in DENSE:
        cells = [f"{Model.of(size, recipe).memory(32768) / 1e9:.1f}" for recipe in (*RECIPES, None)]
        rows.append([size, *cells])
    return table(("", *RECIPES, "bfloat16"), rows)


def parts() -> list[str]:
    """Rows of a Markdown table: what the memory of a size is made of."""
    rows = []
    for size in DENSE:
        models = [Model.of(size, recipe) for recipe in (*RECIPES, None)]
        text = models[0].text
        rows.append(
            [
                size,
                *(f"{model.weights / 1e9:.2f} GB" for model in models),
                f"{state_bytes(text) / 1e6:.0f} MB",
                f"{kv_bytes_per_token(text) / 1024:.0f} KiB",
                f"{kv_bytes_per_token(text, 8) / 1024:.1f} KiB",
            ]
        )
    return table(("", *RECIPES, "bfloat16", "states of a sequence", "a token of context", "in 8 bits"), rows)


def caches() -> list[str]:
    """Rows of a Markdown table: states, keys and values of one sequence, GB."""
    rows = []
    for size in DENSE:
        model = Model.of(size, None)
        rows.append([size, *(f"{(model.memory(n) - model.weights) / 1e9:.2f}" for n in CONTEXTS)])
    return table(("", *(f"{n:,} tokens" for n in CONTEXTS)), rows)


def speeds() -> list[str]:
    """Rows of a Markdown table: tokens a second that bandwidth allows at most, `unsloth` at 3 bits, empty context."""
    models = [Model.of(size, "unsloth, 3 bits") for size in DENSE]
    rows = []
    for chip, gbs in CHIPS.items():
        # Each token reads the weights, and reads and writes the states.
        rates = [gbs * 1e9 / (model.read + 2 * state_bytes(model.text)) for model in models]
        rows.append([chip, str(gbs), *(f"{rate:.0f}" for rate in rates)])
    read = ["bytes a token", "", *(f"{(model.read + 2 * state_bytes(model.text)) / 1e9:.2f} GB" for model in models)]
    return table(("chip", "GB/s", *DENSE), [read, *rows])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    for title, rows in (
        ("Memory with 32,768 tokens of context, GB", memory_by_recipe()),
        ("Parts", parts()),
        ("States, keys and values of a sequence, GB", caches()),
        ("Tokens a second at most", speeds()),
    ):
        print(f"## {title}\n", *rows, "", sep="\n")


if __name__ == "__main__":
    main()
