"""What the server costs over the library: ``python bench/clients/overhead.py [ROUNDS]``.

The same prompts by eight threads of this process and by eight connections of another, in turn: the 9B's shapes cut to 8
layers, random weights, completions of token ids, streamed.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

CLIENTS, PROMPT, TOKENS = 8, 48, 48


def prompts(turn: int) -> list[list[int]]:
    draw = random.Random(turn)
    return [[draw.randrange(1000) for _ in range(PROMPT)] for _ in range(CLIENTS)]


def asked(prompt: list[int]) -> dict[str, object]:
    options = {"usage": {"include_usage": True}}
    return {
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": options["usage"],
    }


def clients(port: int) -> None:
    """In a process of its own: for each number that comes in, the seconds of such a turn."""

    def one(prompt: list[int]) -> int:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/completions", json.dumps(asked(prompt)), {"content-type": "application/json"})
        frames = [line for line in connection.getresponse() if line.startswith(b"data: {")]
        connection.close()
        count: int = json.loads(frames[-1][6:])["usage"]["completion_tokens"]
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        for line in sys.stdin:
            begin = time.perf_counter()
            tokens = sum(pool.map(one, prompts(int(line))))
            print(time.perf_counter() - begin, tokens, flush=True)


def main(rounds: int) -> None:
    import uvicorn

    from mlx_delta import load_model
    from mlx_delta.bench.random_model import write_model
    from mlx_delta.server.app import create_app

    with tempfile.TemporaryDirectory() as folder:
        write_model("9B", Path(folder) / "model", layers=8)
        model = load_model(Path(folder) / "model")
    config = uvicorn.Config(create_app(model, name="x"), port=0, log_config=None, access_log=False, http="h11")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]

    def direct(turn: int) -> tuple[float, int]:
        def one(prompt: list[int]) -> int:
            generation = model.generate(prompt, max_new_tokens=TOKENS, temperature=0)
            generation.text()
            return len(generation.token_ids)

        begin = time.perf_counter()
        tokens = sum(pool.map(one, prompts(turn)))
        return time.perf_counter() - begin, tokens

    command = [sys.executable, __file__, "clients", str(port)]
    with (
        ThreadPoolExecutor(CLIENTS) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        ratios = []
        for turn in range(rounds + 1):
            mine, tokens = direct(turn)
            other.stdin.write(f"{turn}\n")
            other.stdin.flush()
            theirs, told = other.stdout.readline().split()
            assert int(told) == tokens
            ratios.append(float(theirs) / mine)
            print(f"{turn}: library {tokens / mine:.1f} tok/s, server {tokens / float(theirs):.1f} tok/s", flush=True)
        other.stdin.close()
    print(
        f"server / library, seconds: median {statistics.median(ratios[1:]):.3f} of {[round(r, 3) for r in ratios[1:]]}"
    )
    server.should_exit = True


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        clients(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
