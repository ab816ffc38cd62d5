"""The command line run as a user runs it, in a process of its own; and without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from mlx_delta.cli.main import app

MLX_DELTA = [sys.executable, "-m", "mlx_delta"]
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


def run(*arguments: str | Path, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """settings: environment variables."""
    command = [*MLX_DELTA, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env={**ENVIRONMENT, **settings}, timeout=120, check=False
    )


def call(*arguments: str | Path, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which saves the second that imports take: where nothing of a process is at stake."""
    command = list(map(str, arguments))
    done = CliRunner().invoke(app, command, input=stdin, env={"COLUMNS": "100", "NO_COLOR": "1", **settings})
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)
