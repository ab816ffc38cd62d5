"""Build the Apple Silicon wheel on Linux, and check what it would meet on a Mac.

Takes MLX's own macOS wheels from PyPI for headers and libraries, compiles with zig (PyPI's ziglang), links with
ld64.lld (Debian's lld and llvm). Every symbol must resolve against those libraries but for CPython's own, so a call
that MLX does not export fails here and not on a user's machine. Usage: python cross/macos/build.py (make wheel-macos)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "macos"
PLATFORM, MINIMUM = "macosx_14_0_arm64", "14.0"
RPATH = "@loader_path/../mlx/lib"


class BuildError(Exception):
    """A tool is missing, or the wheel is not what a Mac needs."""


def main() -> None:
    try:
        wheel = build(find_llvm(), find_zig())
        print(json.dumps(check(wheel, find_llvm()), indent=2))
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size:,} bytes")
    except (BuildError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def find_llvm() -> Path:
    """The folder of ld64.lld and the llvm tools: $LLVM_BIN, or the newest of Debian's, 16 or later."""
    folders = [Path(os.environ["LLVM_BIN"])] if "LLVM_BIN" in os.environ else []
    folders += sorted(Path("/usr/lib").glob("llvm-*/bin"), key=lambda p: -int(p.parent.name.partition("-")[2]))
    for folder in folders:
        if all((folder / tool).exists() for tool in ("ld64.lld", "llvm-objdump", "llvm-install-name-tool")):
            return folder
    raise BuildError("ld64.lld and the llvm tools: expected in /usr/lib/llvm-*/bin, found none: apt install lld llvm")


def find_zig() -> Path:
    try:
        import ziglang
    except ImportError as missing:
        raise BuildError("ziglang: expected the package from PyPI, found none: pip install ziglang") from missing
    return Path(ziglang.__file__).parent / "zig"


def mlx_requirement() -> str:
    found = re.search(r'"mlx(==[0-9.]+); sys_platform == \'darwin\'"', (ROOT / "pyproject.toml").read_text())
    if found is None:
        raise BuildError("pyproject.toml: expected a pinned mlx for darwin, found none")
    return found[1]


def fetch_mlx() -> Path:
    """MLX's macOS wheels, unpacked: the mlx package folder."""
    pin = mlx_requirement()
    unpacked = WORK / f"mlx{pin}"
    if not (unpacked / "mlx" / "lib" / "libmlx.dylib").exists():
        downloads = WORK / "downloads"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        target = ["--python-version", "3.12", "--platform", PLATFORM, "-d", str(downloads)]
        subprocess.run([*pip, *target, f"mlx{pin}", f"mlx-metal{pin}"], check=True)
        for file in downloads.glob(f"mlx*{pin.strip('=')}*.whl"):
            zipfile.ZipFile(file).extractall(unpacked)
    return unpacked / "mlx"


def stub_system(zig: Path) -> None:
    """libSystem.tbd: zig's own, less the arm64e.x1 targets that ld64.lld does not know."""
    text = (zig.parent / "lib" / "libc" / "darwin" / "libSystem.tbd").read_text()
    text = re.sub(r",\s*arm64e\.x1-\w+|arm64e\.x1-\w+\s*,", "", text)
    (WORK / "libSystem.tbd").write_text(text)


def build(llvm: Path, zig: Path) -> Path:
    WORK.mkdir(parents=True, exist_ok=True)
    stub_system(zig)
    out = WORK / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    environment = {
        **os.environ,
        "ZIG": str(zig),
        "LD64_LLD": str(llvm / "ld64.lld"),
        "LLVM_BIN": str(llvm),
        "MACOS_STUBS": str(WORK),
        "_PYTHON_HOST_PLATFORM": f"macosx-{MINIMUM}-arm64",
        "CMAKE_ARGS": f"-DCMAKE_TOOLCHAIN_FILE={HERE}/toolchain.cmake -DMLX_ROOT={fetch_mlx()}",
    }
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(out), str(ROOT)], check=True, env=environment)
    (wheel,) = out.glob("*.whl")
    if not wheel.name.endswith(f"cp310-abi3-{PLATFORM}.whl"):
        raise BuildError(f"{wheel.name}: expected a cp310-abi3-{PLATFORM} wheel")
    (ROOT / "dist").mkdir(exist_ok=True)
    return Path(shutil.copy2(wheel, ROOT / "dist"))


def check(wheel: Path, llvm: Path) -> dict[str, object]:
    """Symbols by the library that has them, rpath, minimum macOS, stable ABI. Raises BuildError where one is wrong."""
    unpacked = WORK / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    zipfile.ZipFile(wheel).extractall(unpacked)
    (extension,) = (unpacked / "mlx_delta").glob("_core*.so")

    def objdump(flag: str) -> str:
        command = [str(llvm / "llvm-objdump"), "--macho", flag, str(extension)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    headers = objdump("--private-headers")
    minimum = re.search(r"minos (\S+)", headers)
    rpaths = re.findall(r"cmd LC_RPATH\n\s+cmdsize \d+\n\s+path (\S+)", headers)
    if minimum is None or minimum[1] != MINIMUM:
        raise BuildError(f"{wheel.name}: minos: expected {MINIMUM}, found {minimum and minimum[1]}")
    if rpaths != [RPATH]:
        raise BuildError(f"{wheel.name}: rpath: expected {RPATH}, found {rpaths}")
    nm = [str(llvm / "llvm-nm"), "-m", "--undefined-only", str(extension)]
    listing = subprocess.run(nm, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"external (\S+) \((?:from (\S+)|dynamically looked up)\)", listing)
    libraries = Counter(library for _, library in found if library)
    loose = [name for name, library in found if not library]
    foreign = [name for name in loose if not re.match(r"_(Py|_Py)", name)]
    if foreign:
        raise BuildError(f"{wheel.name}: undefined: expected CPython's symbols only, found {', '.join(foreign[:5])}")
    audit = [str(Path(sys.executable).parent / "abi3audit"), "--strict", str(wheel)]
    subprocess.run(audit, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"minos": minimum[1], "rpath": rpaths[0], "symbols": dict(libraries), "cpython": len(loose), "abi3": "clean"}


if __name__ == "__main__":
    main()
