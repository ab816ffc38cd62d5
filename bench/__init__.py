"""What needs other people's software or a GPU at hand: mlx-delta beside mlx-lm and llama.cpp; the Metal kernels on an
NVIDIA GPU. The rest is mlx_delta.bench.
"""

import sys
from pathlib import Path

# what benches share with tests: the compilers of kernels
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
