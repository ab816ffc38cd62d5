"""mlx-delta beside mlx-lm and llama.cpp on one machine, one shape and the same bytes a token, in turn.

    python -m bench.peers --shape 9b --layers 8 --llama-bench ../llama.cpp/build/bin/llama-bench

mlx-lm runs the very same checkpoint; llama.cpp a GGUF of the same shape in the K-quants closest to the recipe
(bench/random_gguf.py). Every round runs each of them once, so that what else the machine does hits all alike; a ratio
is the median over the rounds of ours / theirs. All use the same number of threads (MLX_DELTA_THREADS); mlx-lm's CPU
backend uses one whatever it is told. mlx-lm needs some 30 seconds a token here: leave it out with --peers llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import mlx.core as mx

from bench.random_gguf import write_gguf
from mlx_delta import _core
from mlx_delta.bench.checks import check_ops
from mlx_delta.bench.random_model import write_model
from mlx_delta.bench.sizes import size_named
from mlx_delta.bench.timing import ReadBandwidth
from mlx_delta.bench.whole_model import bench_decode, bench_prefill
from mlx_delta.loading import load_model

OURS, MLX_LM, LLAMA_CPP = "mlx-delta", "mlx-lm", "llama.cpp"
Runner = Callable[[], dict[str, float]]  # one round: {"decode": tok/s, "prefill": tok/s}


def ours(directory: Path, args: argparse.Namespace, bandwidth: ReadBandwidth) -> Runner:
    network = load_model(directory).network

    def run() -> dict[str, float]:
        (row,) = bench_decode(network, contexts=[args.context], tokens=args.tokens, rounds=1, bandwidth=bandwidth)
        found = {"decode": row.tokens_per_second}
        if args.prompt:
            prompt = bench_prefill(network, context=args.context, tokens=args.prompt, rounds=1, bandwidth=bandwidth)
            found["prefill"] = prompt.tokens_per_second
        return found

    return run


def mlx_lm(directory: Path, args: argparse.Namespace) -> Runner:
    """Its own model and cache; greedy, token by token. It decodes from an empty context, and prefill is left out."""
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model as load

    model, _ = load(directory)
    cache = make_prompt_cache(model)

    def step(token: mx.array) -> mx.array:
        token = mx.argmax(model(token[None], cache=cache)[:, -1], axis=-1)
        mx.eval(token)
        return token

    token = step(mx.array([1]))

    def run() -> dict[str, float]:
        nonlocal token
        start = time.perf_counter()
        token = step(token)
        return {"decode": 1 / (time.perf_counter() - start)}

    return run


def llama_cpp(gguf: Path, args: argparse.Namespace) -> Runner:
    command = [
        *(args.llama_bench, "-m", gguf, "-t", _core.cpu_threads(), "-r", 1, "-d", args.context, "-o", "json"),
        *("-n", args.tokens, "-p", args.prompt, *args.llama_options),
    ]  # fmt: skip

    def run() -> dict[str, float]:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(f"{args.llama_bench}: exit status {done.returncode}: {done.stderr[-2000:]}")
        return {"decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in json.loads(done.stdout)}

    return run


@contextmanager
def kept(directory: Path | None) -> Iterator[Path]:
    """Where checkpoints are made: ``directory``, or a temporary one."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="mlx-delta-peers-") as scratch:
        yield Path(scratch)


def compare(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Build what is missing, run the rounds, and say it in one object."""
    args.shape = size_named(args.shape)
    for name in ("rounds", "tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, found {getattr(args, name)}")
    stem = args.shape if args.layers is None else f"{args.shape}-{args.layers}-layers"
    checkpoint, gguf = directory / stem, directory / f"{stem}.gguf"
    if not checkpoint.exists():
        write_model(args.shape, checkpoint, layers=args.layers)
    if LLAMA_CPP in args.peers and not gguf.exists():
        write_gguf(args.shape, gguf, args.layers)
    check_ops()
    bandwidth = ReadBandwidth()
    runners = {OURS: ours(checkpoint, args, bandwidth)}
    if MLX_LM in args.peers:
        runners[MLX_LM] = mlx_lm(checkpoint, args)
    if LLAMA_CPP in args.peers:
        runners[LLAMA_CPP] = llama_cpp(gguf, args)
    speeds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index in range(args.rounds):
        for name, run in runners.items():
            for what, speed in run().items():
                speeds[name][what].append(speed)
                print(f"round {index + 1}: {name} {what} {speed:.2f} tok/s", file=sys.stderr, flush=True)
    return {
        "shape": args.shape,
        "layers": args.layers,
        "context": args.context,
        "threads": _core.cpu_threads(),
        "isa": _core.cpu_isa(),
        "rounds": args.rounds,
        "read_bandwidth_gbs": bandwidth.median() / 1e9,
        "tokens_per_second": {name: {what: median(runs) for what, runs in row.items()} for name, row in speeds.items()},
        "ratios": {name: ratios(speeds[OURS], theirs) for name, theirs in speeds.items() if name != OURS},
    }


def ratios(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, float]:
    """Median over the rounds of ours / theirs."""
    return {what: median(a / b for a, b in zip(ours[what], runs, strict=True)) for what, runs in theirs.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="9b", help="such as 9b or 35b-a3b")
    parser.add_argument("--layers", type=int, help="only so many layers of it")
    parser.add_argument("--peers", default=f"{MLX_LM},{LLAMA_CPP}", help="comma-separated")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, built for this machine")
    parser.add_argument("--llama-options", type=str.split, default=[], help="more options for it, in one string")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a round")
    parser.add_argument("--prompt", type=int, default=512, help="prefilled in a round; 0: none")
    parser.add_argument("--context", type=int, default=0, help="tokens before; llama-bench computes them every round")
    parser.add_argument("--directory", type=Path, help="keep the checkpoint and the GGUF here, and use what is there")
    args = parser.parse_args(argv)
    args.peers = args.peers.split(",")
    unknown = set(args.peers) - {MLX_LM, LLAMA_CPP}
    if unknown:
        parser.error(f"--peers: expected {MLX_LM} or {LLAMA_CPP}, found {', '.join(sorted(unknown))}")
    if LLAMA_CPP in args.peers and (args.llama_bench is None or not args.llama_bench.is_file()):
        parser.error(f"--llama-bench: expected the path of llama-bench, found {args.llama_bench}")
    try:
        with kept(args.directory) as directory:
            print(json.dumps(compare(args, directory), indent=2))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
