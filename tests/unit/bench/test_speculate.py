"""bench speculate: the last line is an object with the speed-up, and the cache ends where the accepted rows do."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mlx_delta.bench.speculate import simulate
from mlx_delta.cli.main import app
from mlx_delta.loading import load_model
from support import TINY


def test_a_model_of_ones_own() -> None:
    command = ["bench", "speculate", "--model", str(TINY), "--tokens", "6", "--repeats", "1", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["speedup"] > 0
    assert found["drafted_tokens"] >= found["accepted_tokens"]


def test_a_simulated_acceptance() -> None:
    (row,) = simulate(load_model(TINY).network, drafts=(2,), acceptance=0.5, context=4, rounds=2)
    assert row.tokens == pytest.approx(1.75)
    assert row.speedup == pytest.approx(1.75 * row.pass_ms / (row.drafting_ms + row.checking_ms))
