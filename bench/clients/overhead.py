"""What the server costs over the library: ``python bench/clients/overhead.py [MODEL] [--rounds N] [--clients 1 8]``.

The same questions by threads of this process (``chat_stream``) and by connections of another process
(``/v1/chat/completions``, streamed), in turn. Seconds on the clock tell little on a machine that has more to do, so
processor time is told too: of the thread of the event loop, which is the server's alone, and of all of this process
beyond what the library takes for the same tokens. MLX_DELTA_THREADS=1 keeps kernels' threads from waiting busily,
which would count. MODEL: a checkpoint's directory; left out, the 9B's shapes cut to --layers, with random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_delta.language_model import LanguageModel

PATH = "/v1/chat/completions"
TELLS = {"stream": True, "stream_options": {"include_usage": True}}


def asked(turn: int, client: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Tell {client} things of {turn}."}], "temperature": 0}


@dataclass(frozen=True)
class Turn:
    """seconds on the clock; processor seconds of this process, of them the event loop's, and of the clients."""

    tokens: int
    seconds: float
    process: float
    loop: float
    clients: float = 0.0


def clients() -> None:
    """In a process of its own: each line that comes in is a turn, and is answered with its figures."""

    def one(port: int, turn: int, client: int, tokens: int) -> int:
        connection = HTTPConnection("127.0.0.1", port)
        body = json.dumps({**asked(turn, client), **TELLS, "max_tokens": tokens})
        connection.request("POST", PATH, body, {"content-type": "application/json"})
        frames = [line for line in connection.getresponse() if line.startswith(b"data: {")]
        connection.close()
        count: int = json.loads(frames[-1][6:])["usage"]["completion_tokens"]
        return count

    with ThreadPoolExecutor(16) as pool:
        for line in sys.stdin:
            port, turn, count, tokens = map(int, line.split())
            before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            made = sum(pool.map(lambda i, p=port, t=turn, n=tokens: one(p, t, i, n), range(count)))
            seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(made, seconds, used, flush=True)


@contextmanager
def served(model: LanguageModel) -> Iterator[tuple[int, Callable[[], float]]]:
    """A server of this process: its port, and a clock of what its event loop has used."""
    import uvicorn

    from mlx_delta.server.app import create_app

    config = uvicorn.Config(
        create_app(model, name="x"), port=0, http="h11", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    yield server.servers[0].sockets[0].getsockname()[1], lambda: time.clock_gettime(clock)
    server.should_exit = True
    thread.join()


def library(model: LanguageModel, pool: ThreadPoolExecutor, turn: int, count: int, tokens: int) -> Turn:
    def one(client: int) -> int:
        question = asked(turn, client)
        stream = model.chat_stream(question["messages"], temperature=0, max_new_tokens=tokens)
        events = list(stream)
        assert events[-1].result is not None
        return events[-1].result.usage.completion_tokens

    process, begin = time.process_time(), time.perf_counter()
    made = sum(pool.map(one, range(count)))
    return Turn(made, time.perf_counter() - begin, time.process_time() - process, 0.0)


def measure(model: LanguageModel, rounds: int, counts: list[int], tokens: int) -> None:
    command = [sys.executable, __file__, "--be-clients"]
    with (
        served(model) as (port, loop),
        ThreadPoolExecutor(16) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None

        def server(turn: int, count: int) -> Turn:
            process, before = time.process_time(), loop()
            other.stdin.write(f"{port} {turn} {count} {tokens}\n")  # type: ignore[union-attr]
            other.stdin.flush()  # type: ignore[union-attr]
            made, seconds, used = other.stdout.readline().split()  # type: ignore[union-attr]
            return Turn(int(made), float(seconds), time.process_time() - process, loop() - before, float(used))

        for count in counts:
            pairs: list[tuple[Turn, Turn]] = []
            for turn in range(rounds + 1):
                if turn % 2:
                    mine, theirs = library(model, pool, turn, count, tokens), server(turn, count)
                else:
                    theirs, mine = server(turn, count), library(model, pool, turn, count, tokens)
                assert mine.tokens == theirs.tokens
                pairs.append((mine, theirs))
            tell(count, pairs[1:])
        other.stdin.close()


def tell(count: int, pairs: list[tuple[Turn, Turn]]) -> None:
    def a_token(value: Callable[[Turn], float], turns: list[Turn]) -> float:
        return sum(map(value, turns)) / sum(turn.tokens for turn in turns) * 1e6

    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    ratios = sorted((b.seconds / b.tokens) / (a.seconds / a.tokens) for a, b in pairs)
    median, spread = statistics.median(ratios), (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])
    wall, loop = a_token(lambda t: t.seconds, mine), a_token(lambda t: t.loop, theirs)
    used, process = a_token(lambda t: t.process, mine), a_token(lambda t: t.process, theirs)
    clients = a_token(lambda t: t.clients, theirs)
    print(f"{count} clients, {len(pairs)} pairs of turns, {sum(turn.tokens for turn in theirs)} tokens each way")
    print(f"  seconds, server / library: median {median:.3f}, half of them in {spread[0]:.3f} to {spread[1]:.3f}")
    print(f"  microseconds a token: library {wall:.0f} on the clock, {used:.0f} of processors; server {process:.0f} of")
    print(f"  processors (x {process / used:.3f}, {process - used:+.0f}), of them the event loop {loop:.0f}", end="")
    print(f" ({100 * loop / wall:.2f} % of the clock's); clients {clients:.0f}", flush=True)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("model", nargs="?", type=Path)
    parse.add_argument("--layers", type=int, default=4)
    parse.add_argument("--rounds", type=int, default=10)
    parse.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parse.add_argument("--tokens", type=int, default=48)
    parse.add_argument("--be-clients", action="store_true", help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.be_clients:
        clients()
        return
    from mlx_delta import load_model
    from mlx_delta.bench.random_model import write_model
    from mlx_delta.example import example_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = given.model
        if path is None:
            path = Path(folder) / "model"
            write_model("9B", path, layers=given.layers)
            shutil.copy(example_checkpoint() / "chat_template.jinja", path)
        model = load_model(path, prefix_cache_bytes=0)
    measure(model, given.rounds, given.clients, given.tokens)


if __name__ == "__main__":
    main()
