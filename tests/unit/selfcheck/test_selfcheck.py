"""Every stage but the timing, with the GPU's kernels emulated, as a Mac's owner runs it."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core
from mlx_delta.engine.kernels import check_subnormals
from mlx_delta.errors import GpuError, RedTests
from mlx_delta.selfcheck import report as reports
from mlx_delta.selfcheck import speed
from mlx_delta.selfcheck.report import MOST_BYTES, run_stages, without_paths, write_report
from mlx_delta.selfcheck.stages import STAGES, Stage
from mlx_delta.selfcheck.variants import variants
from mlx_delta.selfcheck.way import Way
from msl import strict_compile
from support.command_line import run


def test_emulated(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = run("selfcheck", "--emulate", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("report.json: ok\n")
    report = json.loads(file.read_text())
    assert list(report["stages"]) == list(STAGES)
    assert file.stat().st_size < MOST_BYTES
    assert str(Path.home()) not in file.read_text()
    stages = report["stages"]
    of_a_gpu = {name for name, stage in STAGES.items() if stage.needs_time or stage.needs_gpu}
    assert {name for name, found in stages.items() if "skipped" in found} == of_a_gpu
    assert stages["subnormals"]["this GPU keeps float16 subnormals"] is True
    errors = stages["functions"]["errors"]
    assert errors["precise::cos"]["absolute"] < 1e-6 < errors["fast::cos"]["absolute"]
    assert stages["functions"]["half subnormals as float"] is True
    assert stages["functions"]["ties to bfloat16 go to even"] is True
    assert stages["cases"]["cases"] >= 8
    assert stages["variants"] == {**stages["variants"], "same bits": [[2, 4], [8, 8]], "ms": {}}
    assert stages["states"]["slope"] <= stages["states"]["KV cache a token"] + 100_000


def test_a_variant_with_other_bits_is_told() -> None:
    calls = iter(range(9))

    def wrong(results: list[mx.array]) -> list[mx.array]:
        return [mx.full(r.shape, next(calls)) for r in results]

    with pytest.raises(RedTests, match=r"qmm 3 bits, 3 rows, variant \(2, 4\): expected the plan's bits, found others"):
        variants(Way("emulate", wrong))


def test_the_command_of_a_child_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit of command buffers is a process of its own."""
    monkeypatch.setattr(speed, "_LIMITS", [None])
    assert "tokens a second" in speed.limits(Way("cpu", lambda results: results))["as MLX has them"]


def test_the_probe_compiles_without_a_warning() -> None:
    (launch, *_) = _core.launches([_core.probe(mx.zeros(32))])
    assert strict_compile(launch.source) == []


def test_a_gpu_that_flushes_subnormals_is_refused() -> None:
    with pytest.raises(GpuError, match=r"that it flushes them: .* is 0 instead of 448"):
        check_subnormals(lambda product: [mx.zeros_like(product)])


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    chosen = {name: STAGES[name] for name in ("machine", "subnormals")}
    monkeypatch.setattr(reports, "STAGES", chosen)
    return chosen


def test_on_a_cpu_and_a_stage_that_dies(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    run_one = reports._run

    def dying(name: str, way: str, seconds: int) -> dict[str, object]:
        return run_one(name if name != "subnormals" else "no such stage", way, seconds)

    monkeypatch.setattr(reports, "_run", dying)
    *_, report = run_stages("cpu")
    assert report["verdict"] == "FAILED at subnormals: KeyError: 'no such stage'"
    assert report["stages"]["machine"]["system"]["mlx"] == mx.__version__


def test_one_that_hangs(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports._run("machine", "cpu", 0) == {"error": "not done after 0 s"}


def test_a_report_is_small_whatever_a_stage_says(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", {"verdict": "ok", "stages": {"a": {"log": "x" * 2_000_000}, "b": {"fine": 1}}})
    assert json.loads((tmp_path / "r.json").read_text())["stages"] == {
        "a": {"error": "too long to report"},
        "b": {"fine": 1},
    }


def test_no_paths() -> None:
    text = 'File "/Users/somebody/venv/lib/ops.py", line 3; ~/models/x and 4 GB/s'
    assert without_paths(text) == 'File "ops.py", line 3; x and 4 GB/s'


def test_where_results_differ_is_told() -> None:
    from mlx_delta.selfcheck.numbers import cases

    def wrong(results: list[mx.array]) -> list[mx.array]:
        found = [np.array(r.astype(mx.float32)) for r in results]
        found[0].reshape(-1)[0] += 1000
        return [mx.array(f).astype(r.dtype) for f, r in zip(found, results, strict=True)]

    with pytest.raises(ValueError, match=r"'index': 0, 'found': \['\w{8}', .*'expected'"):
        cases(Way("emulate", wrong))
