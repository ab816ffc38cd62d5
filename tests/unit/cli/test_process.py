"""How commands end: errors and bugs, closed streams, readers that are gone, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mlx_delta.cli.command import register
from mlx_delta.cli.process import EndedBySignal
from mlx_delta.errors import ArgumentError, MissingPackageError, MlxDeltaError, OutputExistsError
from support.command_line import ENVIRONMENT, MLX_DELTA, run


def shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``command`` of a POSIX shell, in which "$@" is mlx-delta with ``arguments``."""
    return subprocess.run(
        ["sh", "-c", command, "sh", *MLX_DELTA, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


def failing(error: BaseException) -> typer.Typer:
    def command(top_p: Annotated[float, typer.Option("--top-p", help="Mass.")] = 1) -> None:
        raise error

    app = typer.Typer()
    register(app, "fail", command)
    return app


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ArgumentError("top_p: expected <= 1, found 3"), "error: --top-p: expected <= 1, found 3\n"),
        (ArgumentError("top_k: expected >= 0, found -1"), "error: top_k: expected >= 0, found -1\n"),
        (OutputExistsError("x: expected a new file"), "error: x: expected a new file (--force replaces it)\n"),
        (MlxDeltaError("config.json: expected an object"), "error: config.json: expected an object\n"),
        (MlxDeltaError("two\nlines \x1b[2J"), "error: two lines \ufffd[2J\n"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "error: x.txt: No such file or directory\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (MemoryError(), "error: not enough memory\n"),
        (RuntimeError("[malloc] Unable to allocate 99 bytes."), "error: not enough memory: [malloc] Unable to"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, line: str) -> None:
    done = CliRunner().invoke(failing(error), ["--top-p", "3"])
    assert done.exit_code == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize(
    "error", [KeyError("layers"), ValueError("top_p: 3"), OSError("no number"), AssertionError(), RuntimeError("?")]
)
def test_a_bug_is_a_traceback(error: Exception) -> None:
    done = CliRunner().invoke(failing(error), [])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert f"{type(error).__name__}" in done.stderr
    assert "a bug in mlx-delta" in done.stderr
    assert "/issues" in done.stderr


def come_of(end: BaseException, error: Exception) -> Exception:
    """``error``, raised by what ``end`` came into the midst of: in its place, as a lock or an import does it."""
    try:
        try:
            try:
                raise end
            finally:
                raise error
        except Exception as first:
            raise ImportError("Encountered an error while initializing the extension.") from first
    except ImportError as last:
        return last


def test_a_seeming_bug_that_came_of_a_signal_is_an_interruption() -> None:
    unlocked = RuntimeError("cannot release un-acquired lock")
    done = CliRunner().invoke(failing(come_of(KeyboardInterrupt(), unlocked)), [])
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")
    with pytest.raises(EndedBySignal):  # which ends the program with 143
        CliRunner().invoke(failing(come_of(EndedBySignal(15), unlocked)), [])
    missing = MissingPackageError("expected the package gguf, found it missing")
    missing.__context__ = come_of(KeyboardInterrupt(), unlocked)
    assert CliRunner().invoke(failing(missing), []).exit_code == 130
    full = OSError(28, "No space left on device")
    full.__context__ = KeyboardInterrupt()
    done = CliRunner().invoke(failing(full), [])  # what was to be kept was not
    assert (done.exit_code, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("arguments", [["--debug", "info", "nowhere"], ["info", "nowhere", "--debug"]])
def test_debug_shows_every_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: nowhere: expected a model directory, found nothing\n")
    assert "a bug" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "-m", "TINY", "-p", "Count to 7.", "-t", "0"],
        ["generate", "-m", "TINY", "-p", "Count to 7.", "-t", "0", "--json"],
        ["info", "TINY"],
        ["info", "--system"],
        ["chat", "-m", "TINY"],
        ["--help"],
    ],
)
def test_output_that_nobody_reads_ends_a_command_quietly(arguments: list[str], tiny: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*MLX_DELTA, *(str(tiny) if argument == "TINY" else argument for argument in arguments)]
    done = subprocess.run(
        command,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        input="Count to 7.",
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "arguments", "code", "stdout", "stderr"),
    [
        ('"$@" <&-', ["generate", "-m", "TINY", "-p", "Count to 7.", "-t", "0", "-n", "3"], 0, "This", "tok/s"),
        ('"$@" <&-', ["chat", "-m", "TINY"], 1, "", "error: standard input: Bad file descriptor\n"),
        ('"$@" 2>&-', ["info", "TINY", "--json"], 0, "text_bytes", ""),
        ('"$@" 2>&-', ["info", "nowhere"], 1, "", ""),
        ('"$@" >&-', ["info", "TINY"], 1, "", "error: standard output: Bad file descriptor\n"),
        ('"$@" >&-', ["--help"], 1, "", "error: standard output: Bad file descriptor\n"),
        ('"$@" <&- >&- 2>&-', ["info", "TINY", "--json"], 1, "", ""),
    ],
)
def test_closed_streams(tiny: Path, command: str, arguments: list[str], code: int, stdout: str, stderr: str) -> None:
    done = shell(command, *(tiny if argument == "TINY" else argument for argument in arguments))
    assert done.returncode == code
    assert stdout in done.stdout
    assert stderr in done.stderr
    assert "Traceback" not in done.stderr
    if stderr.startswith("error"):
        assert done.stderr == stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", [["info", "TINY"], ["info", "--system", "--json"], ["--help"]])
def test_a_full_disk_behind_stdout(tiny: Path, arguments: list[str]) -> None:
    done = shell('"$@" > /dev/full', *(tiny if argument == "TINY" else argument for argument in arguments))
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_names_and_streams_that_are_not_utf8(tiny: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(odd).symlink_to(tiny)
    shown = run("info", odd, COLUMNS="300")
    assert shown.returncode == 0, shown.stderr
    assert "\\udcff" in shown.stdout
    refused = run("info", odd + "x")
    assert refused.stderr == f"error: {tmp_path}/\\udcffx: expected a model directory, found nothing\n"
    shown = run("generate", "-m", tiny, "-p", "\u00e9", "--raw", "-n", "4", "-t", "0", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr


def test_a_bug_in_a_file_of_tools_is_not_ours(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text("1 / 0")
    done = run("chat", "-m", tiny, "--tools", tmp_path / "tools.py", stdin="Hello")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/tools.py: ")
    assert "ZeroDivisionError" in done.stderr
    assert "a bug in mlx-delta" not in done.stderr


def test_input_that_is_no_text(tiny: Path) -> None:
    done = shell("printf 'ab\\377' | \"$@\"", "chat", "-m", tiny)
    assert done.returncode == 1
    assert done.stderr == "error: standard input: expected UTF-8, found the byte 0xff in line 1\n"


@pytest.mark.parametrize("module", ["typer", "rich", "tokenizers"])
def test_ctrl_c_during_imports(tiny: Path, tmp_path: Path, module: str) -> None:
    """Wherever it hits: a module that is imported at the start, or by a command, is where it comes."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = run("generate", "-m", tiny, "-p", "x", PYTHONPATH=str(tmp_path))
    assert done.returncode == 130
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing_half_written(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [*MLX_DELTA, "convert", "-i", str(tiny), "-o", str(tmp_path / "out"), "-q"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_nohup_goes_on(tiny: Path, tmp_path: Path) -> None:
    command = 'trap "" HUP; "$@" & pid=$!; while ! ls -A "$0" | grep -q partial; do :; done; kill -HUP $pid; wait $pid'
    arguments = ["convert", "-i", str(tiny), "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run(
        ["sh", "-c", command, str(tmp_path), *MLX_DELTA, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").is_file()
