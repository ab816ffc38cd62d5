"""What tests share: files to read, launches to compare, padded batches, paths. Nothing here is collected by pytest."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny"
GOLDEN = ROOT / "tests" / "golden"
