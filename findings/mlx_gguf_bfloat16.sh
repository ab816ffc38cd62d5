#!/usr/bin/env bash
# mx.load: a GGUF file's bfloat16 tensors arrive as float16, and what that type cannot hold as infinity or zero.
#
# A GGUF in BF16 is what one keeps to lose nothing of a checkpoint in bfloat16. mx.load reads it without a word into
# float16, whose range ends at 65504: 100000 and 3e38 become infinity, 1e-9 becomes 0. MLX has a bfloat16, and from a
# safetensors file of the same values mx.load gives them in it. F32 tensors of a GGUF file stay float32, and exact.
#
# Nothing is downloaded but the packages. Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" gguf==0.19.0 numpy==2.2.6 2>/dev/null

"$work/venv/bin/python" - "$work" <<'PYTHON'
import platform, sys
from importlib.metadata import version

import gguf
import mlx.core as mx
import numpy as np

work = sys.argv[1]
print(f"mlx {version('mlx')}, gguf {version('gguf')}, Python {platform.python_version()}, {platform.system()}")
values = np.tile(np.array([1.0, -1e5, 3e38, 1e-9], np.float32), 8)[None]  # a row of 32


def through_gguf(dtype):
    writer = gguf.GGUFWriter(f"{work}/model.gguf", "qwen35")
    writer.add_tensor("blk.0.weight", gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return mx.load(f"{work}/model.gguf")["blk.0.weight"]


stored = mx.array(values).astype(mx.bfloat16)
mx.save_safetensors(f"{work}/model.safetensors", {"blk.0.weight": stored})
from_safetensors = mx.load(f"{work}/model.safetensors")["blk.0.weight"]
from_gguf, whole = through_gguf(gguf.GGMLQuantizationType.BF16), through_gguf(gguf.GGMLQuantizationType.F32)
for name, array in ("stored", stored), ("safetensors", from_safetensors), ("GGUF BF16", from_gguf), ("GGUF F32", whole):
    print(f"{name:12} {array.dtype!s:18} {array[0, :4].tolist()}")
same = mx.array_equal(from_safetensors, stored).item() and np.array_equal(np.array(whole), values)
lost = from_gguf.dtype == mx.float16 and np.array(from_gguf)[0, :4].tolist() == [1.0, -np.inf, np.inf, 0.0]
sys.exit(0 if same and lost else 1)
PYTHON
echo "as described: what was bfloat16 is float16, with infinities and zeros"
