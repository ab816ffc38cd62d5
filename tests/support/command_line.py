"""The command line run as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MLX_DELTA = [sys.executable, "-m", "mlx_delta"]
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


def run(*arguments: str | Path, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """settings: environment variables."""
    command = [*MLX_DELTA, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env={**ENVIRONMENT, **settings}, timeout=120, check=False
    )
