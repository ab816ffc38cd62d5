"""The wheel among those that pip would install beside it on a Mac: symbols, ABI tags, and whether pip finds a set.

Needs the wheel in dist/ and a network: downloads MLX's wheels for each macOS it is published for (80 MB each, kept in
build/macos/downloads). Usage: python cross/macos/published.py (make check-wheel-macos)
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build import ROOT, WORK, BuildError, find_llvm, mlx_requirement

SYSTEMS = ("14_0", "15_0", "26_0")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DOWNLOADS = WORK / "downloads"
TAG = re.compile(rb"nanobind_system_\w+")


# pip knows the tags of another platform, but takes the markers of its own ("sys_platform == 'linux'").
MARKERS = """
import sys
from pip._vendor.packaging import markers
own = markers.default_environment()
mac = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64",
       "python_version": sys.argv[1], "python_full_version": sys.argv[1] + ".0"}
markers.default_environment = lambda: {**own, **mac}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def main() -> None:
    try:
        (wheel,) = (ROOT / "dist").glob("mlx_delta-*-macosx_*_arm64.whl")
        print("libmlx of macOS", ", ".join(check_symbols(wheel, find_llvm())), "has every symbol")
        print("nanobind's ABI:", check_tags(wheel))
        print("pip finds a set of wheels for Python", ", ".join(check_resolution(wheel)))
    except BuildError as error:
        sys.exit(f"error: {error}")
    except ValueError:
        sys.exit("error: dist: expected one wheel for macOS, found another number: make wheel-macos")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: pip: {(error.stderr or str(error)).strip().splitlines()[-1]}")


def pip(python: str, *arguments: str) -> None:
    command = [sys.executable, "-c", MARKERS, python, *arguments, "--quiet", "--only-binary=:all:"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def published(requirement: str, pattern: str, system: str, python: str = "3.12") -> Path:
    """The wheel for that macOS, downloaded once."""
    for _ in range(2):
        found = sorted(DOWNLOADS.glob(pattern))
        if found:
            return found[-1]
        target = ["--platform", f"macosx_{system}_arm64", "--python-version", python]
        pip(python, "download", "--no-deps", *target, "-d", str(DOWNLOADS), requirement)
    raise BuildError(f"{requirement}: expected a wheel {pattern}, found {[f.name for f in DOWNLOADS.glob('*')]}")


def check_symbols(wheel: Path, llvm: Path) -> list[str]:
    """That every symbol taken from libmlx is in the libmlx of each macOS."""
    with tempfile.TemporaryDirectory() as folder:
        extension = unpacked(wheel, r"mlx_delta/_core.*\.so", Path(folder))
        listing = nm(llvm, "-m", "--undefined-only", extension)
        needed = set(re.findall(r"external (\S+) \(from libmlx\)", listing))
        if not needed:
            raise BuildError(f"{wheel.name}: expected symbols of libmlx, found none")
        pin = mlx_requirement()
        for system in SYSTEMS:
            metal = published(f"mlx-metal{pin}", f"mlx_metal-{pin.strip('=')}-*macosx_{system}_arm64.whl", system)
            library = unpacked(metal, r".*libmlx\.dylib", Path(folder))
            there = {
                line.split()[-1] for line in nm(llvm, "-g", "--defined-only", library).splitlines() if line.strip()
            }
            if missing := sorted(needed - there):
                raise BuildError(f"{metal.name}: expected {len(needed)} symbols, lacks {', '.join(missing[:3])}")
    return list(SYSTEMS)


def check_tags(wheel: Path) -> str:
    """That nanobind's backend serves our ABI and MLX's: else neither sees the other's arrays."""
    pin = mlx_requirement()
    mlx = published(f"mlx{pin}", f"mlx-{pin.strip('=')}-cp312-*macosx_14_0_arm64.whl", "14_0")
    backend = published("nanobind-backend>=1,<2", "nanobind_backend-*-cp312-*.whl", "14_0")
    with tempfile.TemporaryDirectory() as folder:
        ours = tags(unpacked(wheel, r"mlx_delta/_core.*\.so", Path(folder)))
        theirs = tags(unpacked(mlx, r"mlx/core.*\.so", Path(folder)))
        served = tags(unpacked(backend, r"nanobind_backend/.*\.so", Path(folder)))
    if not ours or not theirs or not ours | theirs <= served:
        raise BuildError(f"{wheel.name}: ABI: expected tags of {sorted(served)}, found {sorted(ours | theirs)}")
    return ", ".join(sorted(ours))


def tags(extension: Path) -> set[str]:
    return {found.decode() for found in TAG.findall(extension.read_bytes())}


def check_resolution(wheel: Path) -> list[str]:
    """That pip finds a set of wheels for each Python."""
    for python in PYTHONS:
        target = ["--platform", "macosx_14_0_arm64", "--python-version", python, "--target", str(WORK / "nowhere")]
        pip(python, "install", "--dry-run", *target, str(wheel))
    return list(PYTHONS)


def unpacked(wheel: Path, pattern: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if re.fullmatch(pattern, each))
        return Path(archive.extract(name, folder / wheel.stem))


def nm(llvm: Path, *arguments: object) -> str:
    command = [str(llvm / "llvm-nm"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
