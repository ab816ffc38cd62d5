"""Shared by all tests: outputs are NaN before a kernel runs, where the data is, and what a machine cannot run."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta import _core
from msl import Unsupported
from support import GOLDEN, TINY
from support.ahead import compile_ahead as compile_ahead  # a fixture
from support.devices import DEVICES
from support.experts import write_experts
from support.report import lines

mx.set_default_device(mx.cpu)  # on a Mac too: see support/devices.py
# What mlx-lm, the peer, compiles, MLX has a C++ compiler make on a CPU: a second or two each, for the same values.
mx.disable_compile()
os.environ.setdefault("MLX_DELTA_START_WITHIN", "60")  # ranks: the machine may be busy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long runs of the tests of random inputs, see `make soak`")
    parser.addoption(
        "--part", default=":", metavar="FIRST:END", help="of the 500 prompts of --soak's chats, only these"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats.values()
    reports = [one for group in stats for one in group if isinstance(one, pytest.TestReport)]
    for line in lines(reports):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def skip_unsupported() -> Generator[None]:
    try:
        yield
    except Unsupported as error:
        pytest.skip(str(error))


pytest_runtest_setup = pytest_runtest_call = skip_unsupported


@pytest.fixture(scope="session", autouse=True)
def nan_filled_outputs() -> None:
    _core.set_poison_outputs(True)


@pytest.fixture(params=DEVICES, ids=lambda device: device.type.name)
def device(request: pytest.FixtureRequest) -> Iterator[mx.Device]:
    """Each device of this machine in turn, as MLX's default."""
    mx.set_default_device(request.param)
    yield request.param
    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether tests of random inputs are to take as many as they are said to."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def part(request: pytest.FixtureRequest) -> slice:
    """Which of --soak's prompts are asked."""
    first, _, end = str(request.config.getoption("--part")).partition(":")
    return slice(int(first) if first else None, int(end) if end else None)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The official-layout checkpoint, 11M parameters, trained."""
    return TINY


@pytest.fixture(scope="session")
def golden() -> Path:
    """What Hugging Face transformers and a float64 recurrence computed."""
    return GOLDEN


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with experts, fused, in the official layout: random, with mixers of the trained one."""
    return write_experts(tmp_path_factory.mktemp("experts") / "model")
