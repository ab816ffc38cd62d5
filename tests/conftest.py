"""Shared by all tests: outputs are NaN before a kernel runs, and where the data is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ahead import compile_ahead as compile_ahead  # a fixture
from mlx_delta import _core
from report import lines

ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats.values()
    reports = [one for group in stats for one in group if isinstance(one, pytest.TestReport)]
    for line in lines(reports):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def nan_filled_outputs() -> None:
    _core.set_poison_outputs(True)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The official-layout checkpoint, 11M parameters, trained."""
    return ROOT / "examples" / "tiny"


@pytest.fixture(scope="session")
def golden() -> Path:
    """What Hugging Face transformers and a float64 recurrence computed."""
    return ROOT / "tests" / "golden"
