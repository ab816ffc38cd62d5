"""The command line as a user meets it: help, answers, wrong arguments, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mlx_delta import _core
from mlx_delta.cli.main import app
from mlx_delta.engine.sample import Sampler, SamplingParams
from support.command_line import ENVIRONMENT, MLX_DELTA, call, run


def commands(group: Any, *path: str) -> list[list[str]]:
    """The words of every command, ``["bench", "kernels"]``, as the app has them."""
    if not hasattr(group, "commands"):
        return [list(path)]
    return [words for name, each in group.commands.items() for words in commands(each, *path, name)]


COMMANDS = commands(get_command(app))


def test_help() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert len(COMMANDS) > 10
    assert all(words[0] in shown.stdout for words in COMMANDS)
    assert run("--version").stdout.startswith("mlx-delta 0.")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command(words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.stdout
    options = shown.stdout.partition("Options:")[2].splitlines()
    assert not [line for line in options if line.strip().startswith("-") and len(line.split()) < 3]  # unexplained
    assert "--debug" in shown.stdout
    description = shown.stdout.partition("Options:")[0]
    assert f"  mlx-delta {' '.join(words)}" in description.partition("\n\n")[2]  # an example


def test_help_needs_no_mlx() -> None:
    """It stays instant: nothing heavy is imported before a command runs."""
    heavy = "('mlx.core', 'numpy', 'tokenizers')"
    code = f"import sys; import mlx_delta.cli.main; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_generate_streams_an_answer(tiny: Path) -> None:
    done = run("generate", "--model", tiny, "--prompt", "Count to 7.", "--temperature", "0")
    assert done.returncode == 0
    assert done.stdout.endswith("1 2 3 4 5 6 7\n")
    assert "tok/s" in done.stderr


def test_generate_takes_the_flags_of_mlx_lm(tiny: Path) -> None:
    asked = ["generate", "-m", tiny, "-p", "Count to 7.", "--temp", "0", "--top-p", "0.9", "--min-p", "0.1"]
    whole = call(*asked, "--no-think", "--max-tokens", "40", "--stop", "6", "--stop", "never", "--json")
    assert json.loads(whole.stdout)["text"] == "1 2 3 4 5 "
    cut = call(*asked, "--no-think", "--max-tokens", "3", "--json")
    assert json.loads(cut.stdout)["generated_tokens"] == 3
    lengths = [
        json.loads(call(*asked, *more, "-n", "1", "--json").stdout)["prompt_tokens"]
        for more in ([], ["--system-prompt", "Be brief."], ["--ignore-chat-template"])
    ]
    assert lengths[1] > lengths[0] > lengths[2]


@pytest.mark.parametrize("options", [[], ["--think"], ["--no-think"], ["--preset", "coding", "--top-k", "7"]])
def test_generate_has_the_presets_of_chat(tiny: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    used: list[SamplingParams] = []

    class Seen(Sampler):
        def __init__(self, params: SamplingParams, *arguments: Any) -> None:
            used.append(params)
            super().__init__(params, *arguments)

    monkeypatch.setattr("mlx_delta.text.generation.Sampler", Seen)
    monkeypatch.setattr("mlx_delta.chat.stream.Sampler", Seen)
    asked = ["-m", str(tiny), "-n", "1", *options]
    assert CliRunner().invoke(app, ["generate", *asked, "-p", "Hi"]).exit_code == 0
    assert CliRunner().invoke(app, ["chat", *asked], input="Hi").exit_code == 0
    assert used[0] == used[1]
    assert used[0].top_k == (7 if options[2:] else 20)


def test_completion() -> None:
    # The shell is the nearest one above the process: none is, where neither a terminal nor a script began the tests.
    asked = ["bash", "-c", '"$@"; exit $?', "bash", *MLX_DELTA, "--show-completion"]
    script = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert script.returncode == 0, script.stderr
    assert "complete" in script.stdout
    words = {"COMP_WORDS": "mlx-delta gen", "COMP_CWORD": "1"}
    found = run(**words, _MLX_DELTA_COMPLETE="complete_bash")
    assert "generate" in found.stdout


def test_generate_json(tiny: Path) -> None:
    done = run("generate", "-m", tiny, "-p", "-", "--raw", "-n", "5", "-t", "0", "--json", stdin="def __init__(self")
    result = json.loads(done.stdout)
    assert result["generated_tokens"] == len(result["token_ids"]) == 5
    assert result["finish_reason"] == "length"
    assert result["prompt_tokens_per_second"] > 0 < result["generation_tokens_per_second"]
    assert result["peak_memory_bytes"] > 20_000_000


def test_a_restart_goes_on_from_files(tiny: Path, tmp_path: Path) -> None:
    question = ["generate", "-m", tiny, "-p", "-", "-n", "5", "-t", "0", "--json", "--prefix-cache-dir", tmp_path]
    first = run(*question, stdin="Count to 7. " * 60)
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    second = run(*question, stdin="Count to 7. " * 60)
    assert file.stat().st_mtime > 0  # it was read
    assert json.loads(first.stdout)["token_ids"] == json.loads(second.stdout)["token_ids"]
    assert not second.stderr


def test_a_limit_of_files_needs_their_folder(tiny: Path) -> None:
    done = call("generate", "-m", tiny, "-p", "x", "--prefix-cache-dir-bytes", "5")
    assert done.returncode == 1
    assert done.stderr == "error: --prefix-cache-dir-bytes: expected with --prefix-cache-dir, found without\n"


def test_info(tiny: Path) -> None:
    done = call("info", tiny)
    assert "10,266,672" in done.stdout
    assert "lm_head" in done.stdout
    facts = json.loads(call("info", tiny, "--json").stdout)
    assert facts["text_parameters"] == 10_266_672
    assert facts["text_bytes"] == sum(g["nbytes"] for g in facts["groups"] if g["component"] not in ("vision", "mtp"))
    assert facts["bytes_per_token"] == facts["text_bytes"] - 4095 * 256 * 2  # all but one row of the embedding


@pytest.mark.parametrize("columns", [40, 80])
def test_narrow_terminals(tiny: Path, tmp_path: Path, columns: int) -> None:
    for arguments in (["info", tiny], ["convert", "-i", tiny, "-o", tmp_path / "x", "-q", "--dry-run"]):
        shown = call(*arguments, COLUMNS=str(columns)).stdout
        assert max(map(len, shown.splitlines())) <= columns
        for name in ("embed_tokens", "lm_head", "in_proj_a, b", "norms", "vision"):
            assert any(line.strip().startswith(name) for line in shown.splitlines()), shown
        assert "…" not in shown


def test_info_system() -> None:
    last = _core.cpu_isas()[-1]
    facts = json.loads(run("info", "--system", "--json", MLX_DELTA_ISA=last, MLX_DELTA_THREADS="1").stdout)
    assert facts["isa"] == last == facts["isas"][-1]
    assert facts["threads"] == 1
    assert {"metal", "mlx_delta", "mlx", "python", "platform"} < facts.keys()
    best = facts["isas"][0]
    shown = run("info", "--system", MLX_DELTA_ISA="", MLX_DELTA_THREADS="")
    assert best in next(line for line in shown.stdout.splitlines() if "instruction set" in line)
    assert facts["mlx"] in shown.stdout


WRONG = [
    ("MLX_DELTA_ISA", "foo", "expected one of "),
    ("MLX_DELTA_THREADS", "abc", "expected a number from 1 to 256, found 'abc'"),
    ("MLX_DELTA_THREADS", "0", "expected a number from 1 to 256, found '0'"),
    ("MLX_DELTA_THREADS", "2x", "expected a number from 1 to 256, found '2x'"),
]
GENERATE = ["generate", "-m", "TINY", "-p", "x"]


@pytest.mark.parametrize(
    ("command", "variable", "value", "expected"),
    [*((["info", "--system"], *wrong) for wrong in WRONG), *((GENERATE, *wrong) for wrong in WRONG[:2])],
)
def test_wrong_settings_are_one_line(tiny: Path, command: list[str], variable: str, value: str, expected: str) -> None:
    done = run(*[tiny if argument == "TINY" else argument for argument in command], **{variable: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {variable}: {expected}")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_demo(tmp_path: Path) -> None:
    done = run("demo", "--output", tmp_path / "tiny-unsloth")
    assert done.returncode == 0, done.stderr
    assert "1 2 3 4 5 6 7" in done.stdout
    assert "▸ add(a=457, b=998)" in done.stdout
    assert "457 + 998 = 1455." in done.stdout
    assert "The capital of Japan is Tokyo." in done.stdout
    assert '▸ search(query="button")' in done.stdout
    assert "decode tok/s" in done.stdout
    assert (tmp_path / "tiny-unsloth" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "error: nowhere: expected a model directory, found nothing"),
        (["info"], "error: info: expected a model or --system, found none"),
        (["info", "nowhere", "--system"], "error: info: expected a model or --system, found nowhere and"),
        (["generate", "-m", "nowhere", "-p", "x"], "error: nowhere: expected a model directory, found nothing"),
        (["convert", "-i", "nowhere", "-o", "out"], "error: nowhere: expected a model directory, found nothing"),
        (["generate", "-m", "TINY", "-p", "x", "-t", "-1"], "error: --temperature: expected >= 0, found -1"),
        (["generate", "-m", "TINY", "-p", "", "--raw"], "error: --prompt: expected text to continue, found nothing"),
        (
            ["generate", "-m", "TINY", "-p", "x", "--dtype", "int4"],
            "error: --dtype: expected float32, float16 or bfloat16",
        ),
        (["generate", "-m", "TINY", "-p", "x", "--kv-bits", "4"], "error: --kv-bits: expected 8"),
        (["chat", "-m", "TINY", "--memory-bytes", "9"], "error: --memory-bytes: expected at least the 2"),
        (
            ["generate", "-m", "TINY", "-p", "x", "-n", "99999", "--memory-bytes", "30000000"],
            "error: --prompt: expected one that needs at most ",
        ),
        (["generate", "-m", "TINY", "-p", "x", "--mtp", "nowhere"], "error: nowhere: expected a model directory"),
        (["generate", "-m", "nowhere", "-p", "x", "--max-tokens", "0"], "error: --max-new-tokens: expected at least 1"),
        (["generate", "-m", "nowhere", "-p", "x", "--min-p", "2"], "error: --min-p: expected >= 0 and <= 1, found 2"),
        (["generate", "-m", "nowhere", "-p", "x", "--raw", "--think"], "error: --think: expected the chat template"),
        (["generate", "-m", "nowhere", "-p", "x", "--raw", "-s", "y"], "error: --system: expected the chat template"),
        (["generate", "-m", "GGUF", "-p", "x"], "convert it first, mlx-delta convert -i "),
    ],
)
def test_wrong_arguments_are_one_line(tiny: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    places = {"TINY": tiny, "GGUF": tmp_path / "x.gguf"}
    done = call(*[places.get(argument, argument) for argument in arguments], stdin="Hello.")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_keeps_what_was_printed(tiny: Path, as_json: bool) -> None:
    command = ["generate", "-m", str(tiny), "-p", "import os", "--raw", "-n", "100000", "-t", "1", "--seed", "1"]
    process = subprocess.Popen(
        [*MLX_DELTA, *command, *(["--json"] if as_json else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = b"" if as_json else process.stdout.read(20)
    if as_json:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=6)  # long after it began to generate
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    if as_json:
        result = json.loads(rest)
        assert result["finish_reason"] == "interrupted"
        assert result["text"]
    else:
        assert len(first) == 20
        assert b"tok/s" in errors
