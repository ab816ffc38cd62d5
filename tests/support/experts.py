"""A checkpoint with experts in the official layout: the tiny one's first layers, and experts of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

from support import TINY

LAYERS, HIDDEN, EXPERTS, CHOSEN, INNER, SHARED = 4, 256, 8, 3, 64, 128
Arrays = dict[str, mx.array]


def experts_of(rng: np.random.Generator, one_by_one: bool) -> Arrays:
    """The tensors of one feed-forward, by their names below ``mlp.``."""

    def draw(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5).astype(mx.bfloat16)

    gate_up, down = draw(EXPERTS, 2 * INNER, HIDDEN), draw(EXPERTS, HIDDEN, INNER)
    arrays = {"experts.gate_up_proj": gate_up, "experts.down_proj": down}
    if one_by_one:
        arrays = {}
        for e in range(EXPERTS):
            gate, up = mx.split(gate_up[e], 2)
            parts = {"gate_proj": gate, "up_proj": up, "down_proj": down[e]}
            arrays |= {f"experts.{e}.{name}.weight": mx.contiguous(part) for name, part in parts.items()}
    arrays["gate.weight"] = 4 * draw(EXPERTS, HIDDEN)
    arrays["shared_expert_gate.weight"] = draw(1, HIDDEN)
    for name, shape in {"gate": (SHARED, HIDDEN), "up": (SHARED, HIDDEN), "down": (HIDDEN, SHARED)}.items():
        arrays[f"shared_expert.{name}_proj.weight"] = draw(*shape)
    return arrays


def write_experts(path: Path, *, one_by_one: bool = False) -> Path:
    """The checkpoint at ``path``, the same weights however its experts lie; the MTP head's are one by one."""
    path.mkdir()
    rng, arrays = np.random.default_rng(20), Arrays()
    for file in sorted(TINY.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            number = name.partition("layers.")[2].partition(".")[0]
            wanted = name.startswith("mtp.") or not number or int(number) < LAYERS
            if wanted and ".mlp." not in name and "visual" not in name:
                arrays[name] = array
    for layer in range(LAYERS):
        found = experts_of(rng, one_by_one)
        arrays |= {f"model.language_model.layers.{layer}.mlp.{name}": array for name, array in found.items()}
    arrays |= {f"mtp.layers.0.mlp.{name}": array for name, array in experts_of(rng, True).items()}
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    config = json.loads((TINY / "config.json").read_text())
    del config["vision_config"], config["text_config"]["intermediate_size"]
    config["model_type"] = "qwen3_5_moe"
    config["text_config"] |= {
        "model_type": "qwen3_5_moe_text",
        "num_hidden_layers": LAYERS,
        "layer_types": config["text_config"]["layer_types"][:LAYERS],
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INNER,
        "shared_expert_intermediate_size": SHARED,
    }
    (path / "config.json").write_text(json.dumps(config))
    for file in (*TINY.glob("tokenizer*"), *TINY.glob("chat_template*"), TINY / "generation_config.json"):
        if file.is_file():
            shutil.copy(file, path)
    return path
