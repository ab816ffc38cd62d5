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
        if not (folder / WORK).is_dir():
            raise FileNotFoundError(f"{folder}: expected the Debian folder that `make agx` sets up, found none")

    def run(
        self, command: list[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A program in ``folder``, which lies in the Debian folder. Raises CompileError with what it says."""
        inside = f"/{folder.relative_to(self.root)}"
        words = ["env", f"--chdir={inside}", *(f"{k}={v}" for k, v in (environment or {}).items()), *command]
        result = subprocess.run(
            ["nice", "chroot", str(self.root), *words], capture_output=True, text=True, errors="replace"
        )
        if result.returncode:
            raise host.CompileError(f"{command[0]} failed:\n{(result.stderr or result.stdout)[-4000:]}")
        return result

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
