"""What the tests say of a machine that cannot run all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_a_run_ends_with_what_did_not_run_and_why(tmp_path: Path) -> None:
    """On another processor, and without qemu on PATH."""
    (tmp_path / "elsewhere.py").write_text("import platform\nplatform.machine = lambda: 'riscv64'\n")
    files = ["tests/msl/test_simdgroup.py", "tests/neon/test_neon.py", "tests/unit/test_documents.py"]
    command = [sys.executable, "-m", "pytest", "-p", "elsewhere", "-p", "no:cacheprovider", *files, "-k"]
    names = "lane or matches_the_reference or environment_variable"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([*command, names], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    report = done.stdout[done.stdout.index("Did not run") :]
    assert "tests of tests/msl/test_simdgroup.py: Metal kernels run on x86-64 Linux with AVX2, FMA and F16C" in report
    assert "tests of tests/neon/test_neon.py: no qemu-aarch64 on PATH" in report
    assert "test_documents.py" not in report
