"""The Debian folder that setup.sh makes, where clang, the SPIR-V translator and Mesa's Asahi driver run."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

from msl import compiler as host
from nvptx import compiler as nvptx

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "build" / "agx" / "debian"
WORK = "agx"  # in it
PACKAGES = ("mesa-opencl-icd", "clang-22", "llvm-spirv-22")
ASAHI = {
    "LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libasahi_noop_drm_shim.so",
    "RUSTICL_ENABLE": "asahi",
    "OCL_ICD_VENDORS": "rusticl.icd",
    "AGX_MESA_DEBUG": "shaders,shaderdb",
    "MESA_SHADER_CACHE_DISABLE": "true",
}


class Debian:
    """A folder in which programs run by chroot, so as root. Raises FileNotFoundError where it is not set up."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.root = folder
        self.idle: list[subprocess.Popen[str]] = []  # builders, which end with this process
        if not (folder / WORK).is_dir():
            raise FileNotFoundError(f"{folder}: expected the Debian folder that `make agx` sets up, found none")

    def words(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> list[str]:
        """The command that runs ``command`` in ``folder``, which lies in the Debian folder."""
        inside = ["env", f"--chdir={self.inside(folder)}", *(f"{k}={v}" for k, v in environment.items()), *command]
        return ["nice", "-n", "4", "chroot", str(self.root), *inside]

    def inside(self, folder: Path) -> str:
        return f"/{folder.relative_to(self.root)}"

    def run(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """A program in ``folder``. Raises CompileError with what it says."""
        result = subprocess.run(self.words(command, folder, {}), capture_output=True, text=True, errors="replace")
        if result.returncode:
            raise host.CompileError(f"{command[0]} failed:\n{(result.stderr or result.stdout)[-4000:]}")
        return result

    def build(self, folder: Path) -> tuple[str, str]:
        """What Mesa prints while it compiles the folder's kernel.spv: stdout and stderr. Raises CompileError."""
        try:
            builder = self.idle.pop()
        except IndexError:
            command = self.words([self.builder], self.root / WORK, ASAHI)
            builder = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
        assert builder.stdin
        assert builder.stdout
        builder.stdin.write(f"{self.inside(folder)}\n")
        builder.stdin.flush()
        answer = builder.stdout.readline().strip()
        printed = [folder / name for name in ("stdout", "stderr")]
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in printed)
        if answer in ("0", "1"):
            self.idle.append(builder)
        if answer != "0":
            what = {"1": "refuses the kernel", "": f"ended with status {builder.poll()}"}.get(answer, answer)
            raise host.CompileError(f"Mesa's compiler: {what}\n{stderr[-4000:]}")
        return stdout, stderr

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder in it for the files of one kernel."""
        with tempfile.TemporaryDirectory(dir=self.root / WORK) as path:
            yield Path(path)

    @functools.cached_property
    def shim(self) -> tuple[str, str]:
        """Where the headers lie in it: of tests/nvptx with bench/agx's in their place, and of tests/msl."""
        name = f"shim-{shim_hash()}"
        target = self.root / WORK / name
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=self.root / WORK) as temporary:
                made = Path(temporary) / name
                shutil.copytree(nvptx.SHIM, made / "gpu")
                shutil.copytree(HERE / "shim", made / "gpu", dirs_exist_ok=True)
                shutil.copytree(host.SHIM, made / "types")
                made.rename(target)
        return f"/{WORK}/{name}/gpu", f"/{WORK}/{name}/types"

    @functools.cached_property
    def builder(self) -> str:
        """build.c, compiled."""
        source = HERE / "build.c"
        target = self.root / WORK / f"build-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
        if not target.exists():
            with self.folder() as folder:
                shutil.copy(source, folder)
                self.run(["gcc", "-O1", "-o", "build", source.name, "-lOpenCL"], folder)
                (folder / "build").rename(target)
        return f"/{WORK}/{target.name}"

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Of the packages that decide what comes out."""
        with self.folder() as folder:
            show = self.run(["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *PACKAGES], folder)
        return dict(re.findall(r"^(\S+) (\S+)$", show.stdout, re.M))


def shim_hash() -> str:
    """Of all headers that a kernel is compiled with."""
    return "-".join(host.files_hash(path)[:8] for path in (HERE / "shim", nvptx.SHIM, host.SHIM))
