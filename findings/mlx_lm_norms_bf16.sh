#!/usr/bin/env bash
# mlx-lm: the norms of a bfloat16 Qwen3.5 are rounded to steps of 1/128 when it is loaded, and stay so in what it converts.
#
# Official checkpoints hold w of (1 + w) * x / rms(x), in bfloat16: near 0, where that type is finest. mlx-lm adds the 1
# to the array as it is read, in its own dtype, and between 1 and 2 bfloat16 has 128 values. So a w of 0.003 counts as 0,
# one of 0.005 as 0.0078; every checkpoint that mlx_lm.convert wrote holds these norms, in 4 bits or 16. Computing 1 + w
# in float32 keeps w; loading the same values in float32 shows it.
#
# Nothing is downloaded but the two packages. Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" "mlx-lm==0.32.2"

"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import mlx.core as mx
from mlx_lm.models import qwen3_5

text = {
    "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 64, "rms_norm_eps": 1e-6,
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
model = qwen3_5.Model(qwen3_5.ModelArgs.from_dict({"model_type": "qwen3_5", "text_config": text}))
official = [0.003, 0.005, 0.3, -0.001]
name = "model.language_model.layers.0.input_layernorm.weight"


def loaded(dtype: mx.Dtype) -> list[float]:
    """What the layer multiplies by, less the 1."""
    weights = {
        name: mx.array(official, dtype=dtype),
        "model.language_model.layers.0.linear_attn.conv1d.weight": mx.zeros((192, 1, 4), dtype=dtype),
    }
    read = model.sanitize(weights)["language_model.model.layers.0.input_layernorm.weight"]
    return [round(value - 1, 6) for value in read.astype(mx.float32).tolist()]


half, whole = loaded(mx.bfloat16), loaded(mx.float32)
print(f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}, Python {sys.version.split()[0]}")
print(f"  w in the checkpoint       {official}")
print(f"  as loaded from bfloat16   {half}")
print(f"  as loaded from float32    {whole}")
steps = [value * (128 if value >= 0 else 256) for value in half]
assert half != whole and all(step == round(step) for step in [round(s, 2) for s in steps]), "no longer rounded"
assert half[0] == 0.0 and whole[0] == 0.003
PYTHON
echo "as described: bfloat16 norms lose what is finer than 1/128"
