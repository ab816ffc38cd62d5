"""Output that appears whole or not at all, also when two processes want the same, or one was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_delta.checkpoint.atomic import atomic_directory, atomic_file, check_output_directory, check_output_file
from mlx_delta.errors import OutputError, OutputExistsError
from support import TINY

HOLD = """
import sys, time
from pathlib import Path
from mlx_delta.checkpoint.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1]), Path("/nowhere"), force=len(sys.argv) > 2) as directory:
    (directory / "part").write_text("x")
    print("writing", flush=True)
    sys.stdin.readline()
    (directory / "config.json").write_text("{}")
"""
CONVERT = "import sys; from mlx_delta.conversion.pipeline import convert; convert(sys.argv[1], sys.argv[2], bits=4)"


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Another process half way through writing ``out``."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = python(HOLD, tmp_path / "out", *arguments)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    return start


def test_two_processes_and_one_output(tmp_path: Path, writer: Callable[..., subprocess.Popen[str]]) -> None:
    """The second is told before it does anything, and the first is not disturbed."""
    first = writer()
    for force in (False, True):
        with (
            pytest.raises(OutputError, match=r"out: expected no other conversion to it, found one at work"),
            atomic_directory(tmp_path / "out", TINY, force),
        ):
            raise AssertionError
    assert names(tmp_path) == [".out.partial"]
    _, errors = first.communicate("\n")
    assert (first.returncode, errors) == (0, "")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "part"]


def test_two_conversions_started_at_once(tmp_path: Path) -> None:
    """Whole ones: exactly one makes it."""
    both = [python(CONVERT, TINY, tmp_path / "out") for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    (lost,) = (errors for process, (_, errors) in zip(both, ends, strict=True) if process.returncode)
    assert "found one at work" in lost or "found it there already" in lost
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left(
    number: signal.Signals, tmp_path: Path, writer: Callable[..., subprocess.Popen[str]]
) -> None:
    first = writer()
    first.send_signal(number)
    first.communicate()
    assert names(tmp_path) == [".out.partial"]
    with atomic_directory(tmp_path / "out", TINY, force=False) as directory:
        assert names(directory) == []
        (directory / "config.json").write_text("{}")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json"]


def test_a_signal_as_the_directory_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is anybody's: what another process has something in stays."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fcntl.flock", interrupted)
    partial = tmp_path / ".out.partial"
    for content, left in ((None, []), ("another's", [partial.name])):
        if content is not None:
            partial.mkdir()
            (partial / "part").write_text(content)
        with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out", TINY, force=False):
            pass
        assert names(tmp_path) == left


def test_an_original_that_a_killed_process_had_moved(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "config.json").write_text("old")
    with pytest.raises(OutputExistsError), atomic_directory(tmp_path / "out", TINY, force=False):
        raise AssertionError
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_an_output_that_comes_to_be_meanwhile(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "out", TINY, force=False) as directory:
            (directory / "config.json").write_text("new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "letter.txt").write_text("dear")

    with pytest.raises(OutputExistsError, match="found one that came to be meanwhile"):
        write()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "letter.txt").read_text() == "dear"


def test_a_file_that_comes_to_be_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "imatrix.gguf"

    def write() -> None:
        with atomic_file(file) as partial:
            partial.write_text("second")
            file.write_text("first")

    with pytest.raises(OutputExistsError, match="came to be meanwhile"):
        write()
    assert file.read_text() == "first"
    with atomic_file(file, force=True) as partial:
        partial.write_text("third")
    assert file.read_text() == "third"
    assert names(tmp_path) == ["imatrix.gguf"]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a", force=True) as one, atomic_file(tmp_path / "a", force=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert names(tmp_path) == ["a"]


def test_files_that_killed_processes_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.partial-{dead.pid}").write_text("half")
    alive = tmp_path / f".a.partial-{os.getppid()}"
    alive.write_text("half")
    with atomic_file(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == [alive.name, "a"]


def test_no_place_to_write_is_told_before_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by the output's own name, not by that of the hidden one."""
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(OutputError, match=r"out: expected a directory to create it in, found the file \S+/file$"):
            check_output_directory(out, TINY, force=False)
    # Root may write to any directory, but for those of a read-only disk: the system's answer is put in.
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    message = r"out: expected a directory that can be written to, found \S+, which cannot$"
    for check in (
        lambda: check_output_directory(tmp_path / "new" / "out", TINY, force=False),
        lambda: check_output_file(tmp_path / "out", force=False),
    ):
        with pytest.raises(OutputError, match=message):
            check()
    assert names(tmp_path) == ["file"]
