"""Shared by all tests: outputs are NaN before a kernel runs, and where the data is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_delta import _core
from support import GOLDEN, TINY
from support.ahead import compile_ahead as compile_ahead  # a fixture
from support.report import lines


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
    return TINY


@pytest.fixture(scope="session")
def golden() -> Path:
    """What Hugging Face transformers and a float64 recurrence computed."""
    return GOLDEN
