"""Runs the stages one after the other, each in a process with a time limit, and keeps one file of what they found.

The file is written after every stage, so that a crash leaves what came before it; it has no path and no user's name.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_delta.checkpoint.atomic import atomic_file
from mlx_delta.selfcheck.stages import STAGES

MOST_BYTES = 1_000_000
_PATH = re.compile(r"(?<![\w.:/])~?(?:/[^/\s:'\"]+)+/")


def run_stages(way: str) -> Iterator[dict[str, Any]]:
    """The report so far, after each stage."""
    report: dict[str, Any] = {"selfcheck": 1, "way": way, "verdict": "", "stages": {}}
    for name, stage in STAGES.items():
        start = time.monotonic()
        skipped = stage.skipped(way)
        found = _run(name, way, stage.seconds) if skipped is None else {"skipped": skipped}
        report["stages"][name] = {"seconds": round(time.monotonic() - start, 1), **found}
        report["verdict"] = _verdict(report["stages"])
        yield report


def write_report(file: Path, report: dict[str, Any]) -> None:
    """Over an earlier one."""
    text = json.dumps(report, indent=1)
    if len(text) > MOST_BYTES:  # no stage says so much; one that goes wild must not be lost whole
        short = {
            name: {"error": "too long to report"} if len(json.dumps(one)) > 300_000 else one
            for name, one in report["stages"].items()
        }
        text = json.dumps({**report, "stages": short}, indent=1)
    with atomic_file(file, force=True) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _verdict(stages: dict[str, dict[str, Any]]) -> str:
    """What fails first is what counts: later stages may fail for the same reason."""
    for name, found in stages.items():
        if "error" in found:
            return f"FAILED at {name}: {found['error'].strip().splitlines()[-1]}"
    return "ok"


def _run(name: str, way: str, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "mlx_delta.selfcheck", name, way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds} s"}
    if done.returncode:
        ended = f"exit status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        return {"error": without_paths(f"{done.stderr[-3000:]}\n{ended}" if not done.stderr else done.stderr[-3000:])}
    return dict(json.loads(without_paths(done.stdout)))


def without_paths(text: str) -> str:
    """File names alone: folders have the names of people and projects."""
    return _PATH.sub("", text)
