"""The Metal kernels on an NVIDIA GPU: checked against the reference, and timed against a copy within its memory.

    python -m bench.gpu_ptx compile DIR      where mlx_delta and clang are; no GPU
    python -m bench.gpu_ptx run DIR          where the GPU is; needs this checkout, numpy and cuda-python

A warp is a simdgroup, so the times say how close a kernel comes to a GPU's bandwidth. They say nothing of what depends
on Apple's compiler, caches or registers, nor of simdgroup matrices, which are emulated.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.gpu_ptx_device import CudaDevice
from bench.gpu_ptx_format import read_manifest
from bench.gpu_ptx_run import Row, run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def main() -> int:
    args = parser().parse_args()
    try:
        return compile_folder(args) if args.command == "compile" else run_folder(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # those of the device and of clang among them
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m bench.gpu_ptx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(dest="command", required=True)
    for name, what in (("compile", "write PTX, launches and data to DIR"), ("run", "check and time them on the GPU")):
        command = commands.add_parser(name, help=what)
        command.add_argument("dir", type=Path)
        command.add_argument("--filter", default="", help="only cases whose name contains this")
        if name == "compile":
            names = ["bfloat16", "float16", "float32"]
            command.add_argument("--dtypes", nargs="+", default=names, choices=names, help="of the small cases")
        else:
            command.add_argument("--repeats", type=int, default=15, help="timed runs of a case; the median counts")
            command.add_argument("--out", type=Path, help="default: bench/results/gpu_ptx-<GPU>.jsonl")
    return result


def compile_folder(args: argparse.Namespace) -> int:
    from bench.gpu_ptx_compile import write_folder

    manifest = write_folder(args.dir, [args.filter], args.dtypes)
    size = sum(path.stat().st_size for path in args.dir.iterdir())
    print(f"{args.dir}: {len(manifest.cases)} cases, {len(manifest.kernels)} kernels, {size / 1e6:.1f} MB")
    return 0


def run_folder(args: argparse.Namespace) -> int:
    """0 where every case is right. The results are written when all have run."""
    manifest = read_manifest(args.dir)
    device = CudaDevice()
    rows = []
    print(f"{device.name}, {device.driver}; share: of a device-to-device copy, read and written bytes counted")
    for row in run(device, args.dir, manifest, args.filter, args.repeats):
        rows.append(row)
        print(line(row), flush=True)
    wrong = [row for row in rows if not row.right]
    path = args.out or RESULTS / f"gpu_ptx-{re.sub(r'[^a-z0-9]+', '-', device.name.lower())}.jsonl"
    write_lines(path, rows)
    print(f"{len(rows)} cases, {len(wrong)} wrong; {path}")
    return 1 if wrong or not rows else 0


def line(row: Row) -> str:
    state = "" if row.right else f"  WRONG: error {row.error:.1e}, above {row.bound:.0e}"
    speed = ""
    if row.us is not None:
        speed = f"{row.us:9.2f} us{row.gbs:8.0f} GB/s{row.share:5.0f} %"
    spilled = f"  {sum(row.local_bytes)} bytes of local memory" if any(row.local_bytes) else ""
    return f"{row.case:44}{row.dtype:10}{row.error:8.1e}{speed}{spilled}{state}"


def write_lines(path: Path, rows: list[Row]) -> None:
    """One JSON object a line, with the commit; whole or not at all."""
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        for row in rows:
            error = row.error if math.isfinite(row.error) else None  # JSON has no NaN
            file.write(json.dumps({**asdict(row), "error": error, "commit": git.stdout.strip()}) + "\n")
    Path(file.name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
