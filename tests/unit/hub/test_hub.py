"""Models by name, through the real huggingface_hub, from a Hub on loopback."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_delta.errors import HubError
from mlx_delta.hub.path import model_path
from support.command_line import ENVIRONMENT, MLX_DELTA, run
from support.gguf_files import write_gguf
from support.hub_server import COMMIT, Hub, serve

NAME = "tests/tiny"
CHUNK = 10 << 20  # bytes that huggingface_hub reads and writes at a time
BIG = random.Random(0).randbytes(3 * CHUNK + 12_345)
OTHERS = {"imatrix.gguf": b"x", "README.md": b"x", "original/model.safetensors": b"x", "optimizer.safetensors": b"x"}


@pytest.fixture(scope="module")
def tiny_files(tiny: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in tiny.iterdir() if file.is_file()}


@pytest.fixture
def hub(tiny_files: dict[str, bytes]) -> Iterator[Hub]:
    """With the model tests/tiny, and tests/big: files that say nothing, one of them large."""
    big = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": BIG}
    with serve({NAME: {**tiny_files, **OTHERS}, "tests/big": big}) as hub:
        yield hub


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this process, which asks ``hub``; huggingface_hub reads its environment once, when imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


def settings(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "", **more}


def test_generate_by_name(hub: Hub, tmp_path: Path) -> None:
    asked = ["generate", "-m", NAME, "-p", "Count to 7.", "-t", "0", "--raw"]
    first = run(*asked, **settings(hub, tmp_path, HF_TOKEN="hf_good"))
    assert first.returncode == 0, first.stderr
    fetched = {request.path.rpartition("/")[2] for request in hub.bodies()}
    assert not fetched & {Path(name).name for name in OTHERS}
    assert {"config.json", "tokenizer.json", "model-00002-of-00002.safetensors"} < fetched
    assert {request.token for request in hub.bodies() if "/lfs/" not in request.path} == {"hf_good"}
    assert {request.token for request in hub.bodies() if "/lfs/" in request.path} == {None}  # it is another host's
    hub.requests.clear()
    second = run(*asked, **settings(hub, tmp_path))
    assert second.stdout == first.stdout
    assert [request.path for request in hub.requests if NAME in request.path] == [f"/api/models/{NAME}?blobs=true"]
    hub.requests.clear()
    offline = run(*asked, **settings(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert offline.stdout == first.stdout
    assert hub.requests == []


def test_a_directory_wins_over_a_name(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / NAME)
    done = subprocess.run(
        [*MLX_DELTA, "generate", "-m", NAME, "-p", "x", "-n", "1", "--raw"],
        cwd=tmp_path,
        env={**ENVIRONMENT, **settings(hub, tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert hub.requests == []


def test_convert_a_gguf_file_by_name(hub: Hub, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "x.gguf").read_bytes()
    hub.models["tests/gguf"] = {"q/x.gguf": content, "other.gguf": b"x" * 200_000}
    done = run("convert", "-i", "tests/gguf/q/x.gguf", "-o", tmp_path / "out", **settings(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").is_file()
    assert hub.downloaded() == len(content)


def start(hub: Hub, home: Path) -> subprocess.Popen[str]:
    """A download of tests/big that has come to a halt after two chunks."""
    hub.stall = 2 * CHUNK + 1000
    code = "from mlx_delta.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", "-m", "tests/big", "-p", "x"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **settings(hub, home)},
    )
    assert hub.stalled.wait(60), process.communicate(timeout=5)
    deadline = time.monotonic() + 30
    while partial(home) < 2 * CHUNK:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hub.stall = None
    return process


def partial(home: Path) -> int:
    return sum(file.stat().st_size for file in home.rglob("*.incomplete"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_goes_on_after_a_kill(hub: Hub, here: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(hub, tmp_path)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    present = partial(tmp_path)
    assert 2 * CHUNK <= present < len(BIG)
    hub.requests.clear()
    assert model_path("tests/big") == here / "models--tests--big" / "snapshots" / COMMIT
    assert [request.range for request in hub.bodies() if "/lfs/" in request.path] == [f"bytes={present}-"]
    assert hub.downloaded() == len(BIG) - present
    assert (model_path("tests/big") / "model.safetensors").read_bytes() == BIG
    assert partial(tmp_path) == 0


def test_two_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    command = [*MLX_DELTA, "generate", "-m", NAME, "-p", "Hi", "-n", "1"]
    environment = {**ENVIRONMENT, **settings(hub, tmp_path)}
    pair = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in pair] == [0, 0]
    large = [
        content for file, content in hub.models[NAME].items() if file.endswith(".safetensors") and len(content) > 9
    ]
    assert hub.downloaded() <= sum(map(len, large)) + len(hub.models[NAME]["tokenizer.json"])


def test_progress(hub: Hub, here: Path) -> None:
    steps: list[tuple[int, int]] = []
    model_path("tests/big", progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert len(steps) > 3
    assert steps[-1] == (len(BIG), len(BIG))


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
def test_revisions(hub: Hub, here: Path, revision: str) -> None:
    found = model_path(f"tests/big@{revision}")
    assert found == here / "models--tests--big" / "snapshots" / COMMIT
    hub.broken = ("/", 503)
    assert model_path(f"tests/big@{revision}") == found
    assert model_path(f"tests/big@{revision}", download=False) == found


def refused(name: str, **how: bool) -> str:
    with pytest.raises(HubError) as caught:
        model_path(name, **how)
    text = str(caught.value)
    assert text.startswith(name)
    assert "\n" not in text
    return text


def test_a_mistyped_name(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused("tests/tyni")
    assert f"expected a directory here or a model on {hub.url}, found neither" in text
    assert "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "found neither (your token" in refused("tests/tyni")
    assert "found neither" in refused("tests/ti--ny")
    assert "found no v9" in refused(f"{NAME}@v9")


def test_gated_and_private_models(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(NAME)
    hub.private.add("tests/big")
    text = refused(NAME)
    assert f"accept its terms at {hub.url}/{NAME}, then log in with `hf auth login`, or set HF_TOKEN" in text
    assert "found neither (for a private one log in with `hf auth login`, or set HF_TOKEN)" in refused("tests/big")
    monkeypatch.setenv("HF_TOKEN", "hf_poor")
    assert f"accept its terms at {hub.url}/{NAME}, with the account of your token" in refused(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "expected a valid token" in refused(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert model_path(NAME).is_dir()
    assert model_path("tests/big").is_dir()


@pytest.mark.parametrize(
    ("status", "text"), [(500, "500: try again later"), (403, "lacks the permission"), (429, "wait some minutes")]
)
def test_a_hub_that_does_not_answer(hub: Hub, here: Path, status: int, text: str) -> None:
    hub.broken = ("/api/models", status)
    assert text in refused("tests/big")


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    with serve({}) as gone:
        pass
    done = run("generate", "-m", NAME, "-p", "x", **settings(gone, tmp_path))
    assert done.returncode == 1
    assert f"error: {NAME}: expected an answer from {gone.url}, found " in done.stderr
    assert "check the network" in done.stderr
    assert done.stderr.count("\n") == 1
    offline = run("generate", "-m", NAME, "-p", "x", **settings(gone, tmp_path, HF_HUB_OFFLINE="1"))
    assert offline.returncode == 1
    assert f"error: {NAME}: expected the model in {tmp_path}/hub, found it missing" in offline.stderr
    assert offline.stderr.count("\n") == 1


def test_half_a_model_is_not_a_cached_one(hub: Hub, here: Path) -> None:
    directory = model_path(NAME)
    (directory / "model-00002-of-00002.safetensors").unlink()
    hub.broken = ("/api/models", 503)
    assert "503" in refused(NAME)
    assert "found neither" in refused(NAME, download=False)
    hub.broken = None
    hub.requests.clear()
    assert model_path(NAME) == directory
    assert hub.downloaded() == 0  # its blob was there


def test_a_damaged_download(hub: Hub, here: Path) -> None:
    hub.damage = True
    assert re.search(r"model.safetensors: expected SHA-256 \w{64}, found", refused("tests/big"))
    assert partial(here) == 0
    hub.damage = False
    assert (model_path("tests/big") / "model.safetensors").read_bytes() == BIG


def test_a_disk_too_small(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    text = refused("tests/big")
    assert re.search(r"expected 0.0 GB free for .*models--tests--big, found 0.0: free some, or set HF_HOME", text)
    assert hub.downloaded() == 0


def test_a_disk_that_fills_up(hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def fill(url: str, stream: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", fill)
        assert "the disk is full" in refused("tests/big")
    assert model_path("tests/big").is_dir()


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_file_system(hub: Hub, tmp_path: Path, checked: bool) -> None:
    """A real one: 16 MB in memory, in a mount namespace of its own."""
    inside = f'mount -t tmpfs -o size=16m tmpfs "$0" && exec {sys.executable} -c "$@"'
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*unshared, 'mount -t tmpfs -o size=16m tmpfs "$0"', str(tmp_path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs Linux's unshare, and leave to use it")
    code = "import sys; from mlx_delta.hub import path, transfer\n"
    code += "" if checked else "transfer._check_space = lambda *_: None\n"
    code += "try: path.model_path('tests/big')\nexcept ValueError as error: sys.exit(str(error))"
    done = subprocess.run(
        [*unshared, inside, str(tmp_path), code],
        env={**ENVIRONMENT, **settings(hub, tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    expected = "GB free for" if checked else "the disk is full: free some, or set HF_HOME"
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_repositories_that_hold_no_model(hub: Hub, here: Path) -> None:
    hub.models["tests/gguf"] = {"a.gguf": b"x", "b.gguf": b"x", "mmproj-a.gguf": b"x"}
    hub.models["tests/torch"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    hub.models["tests/lies"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
    }
    hub.models["tests/climbs"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}',
    }
    assert "convert it first, mlx-delta convert -i tests/gguf/a.gguf -o" in refused("tests/gguf")
    assert "convert it first, mlx-delta convert -i tests/gguf/b.gguf -o" in refused("tests/gguf/b.gguf")
    assert "found a.gguf, b.gguf: name one, tests/gguf/a.gguf" in refused("tests/gguf", gguf=True)
    assert "expected one of a.gguf, b.gguf, found no such file" in refused("tests/gguf/c.gguf", gguf=True)
    assert "found config.json, pytorch_model.bin" in refused("tests/torch")
    assert "expected files that are there, found model-1.safetensors" in refused("tests/lies")
    assert "expected names of .safetensors files, found '../x.safetensors'" in refused("tests/climbs")
    assert not hub.downloaded()
