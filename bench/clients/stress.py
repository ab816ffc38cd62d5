"""What clients do wrong, against a server: ``python stress.py http://127.0.0.1:8080 [REQUESTS]``.

Malformed requests, junk headers, slow and half-closed connections, processes that are killed; then many requests, and
whether memory stays. The figures come from /metrics; nothing but Python is needed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit
from urllib.request import urlopen

ADDRESS = sys.argv[1].rstrip("/")
REQUESTS = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
HOST, PORT = urlsplit(ADDRESS).hostname or "", urlsplit(ADDRESS).port or 80
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Count to 7."}], "temperature": 0, "enable_thinking": False}
_NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 5000}
_FORM = {"type": "json_schema", "json_schema": {"schema": _NUMBERS}}
LONG = {**ASK, "stream": True, "max_tokens": 8000, "response_format": _FORM}  # an answer that does not end by itself


def figure(name: str) -> float:
    with urlopen(f"{ADDRESS}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE))


def post(body: bytes, path: str = CHAT, kind: str = "application/json") -> int:
    connection = HTTPConnection(HOST, PORT, timeout=120)
    try:
        connection.request("POST", path, body, {"content-type": kind})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def settled() -> float:
    """Seconds until no answer is under way."""
    begin = time.monotonic()
    while figure("mlx_delta_answers_running") or figure("mlx_delta_answers_waiting"):
        assert time.monotonic() - begin < 60, "answers are under way that nobody waits for"
        time.sleep(0.01)
    return time.monotonic() - begin


def head(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {size}"]
    return "\r\n".join([*lines, "", ""]).encode()


def malformed(count: int = 500) -> str:
    """A request of which some bytes are others, or are missing: any answer but 5xx."""
    draw = random.Random(1)
    found: Counter[int] = Counter()
    whole = json.dumps({**ASK, "max_tokens": 2, "stop": ["x"], "seed": 3}).encode()
    for _ in range(count):
        body = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(body))
            body[at : at + draw.randint(0, 3)] = bytes(draw.randrange(256) for _ in range(draw.randint(0, 3)))
        found[post(bytes(body))] += 1
    assert not [status for status in found if status >= 500], found
    return f"{count} altered requests: {dict(sorted(found.items()))}"


def junk() -> str:
    """10,000 headers; a line without an end; bytes that are no HTTP."""
    told = []
    many = b"".join(b"x-%d: junk\r\n" % i for i in range(10_000))
    for name, content in (
        ("10,000 headers", b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n"),
        ("a line of 1 MB", b"GET /" + b"x" * (1 << 20)),
        ("no HTTP", os.urandom(5000)),
    ):
        with socket.create_connection((HOST, PORT), timeout=60) as connection:
            try:
                connection.sendall(content)
                answer = connection.recv(200).split(b"\r\n")[0].decode(errors="replace")
            except ConnectionError as error:
                answer = type(error).__name__
        told.append(f"{name}: {answer or 'closed'}")
    return "; ".join(told)


def half_closed(count: int = 50) -> str:
    """Clients that send, and say that they send no more; and those that close without a word."""
    body = json.dumps(LONG).encode()
    for i in range(count):
        with socket.create_connection((HOST, PORT), timeout=10) as connection:
            connection.sendall(head(body) + body)
            if i % 2:
                connection.recv(100)
            connection.shutdown(socket.SHUT_WR if i % 3 else socket.SHUT_RDWR)
    return f"{count} half-closed or closed: nothing under way after {settled():.2f} s"


def slow(count: int = 20) -> str:
    """Connections that stop within a header or a body, while others are answered."""
    body = json.dumps(ASK).encode()
    stalled = [socket.create_connection((HOST, PORT), timeout=60) for _ in range(count)]
    for i, connection in enumerate(stalled):
        connection.sendall((head(body) + body[:10]) if i % 2 else head(body)[:30])
    begin = time.monotonic()
    assert post(body) == 200
    took = time.monotonic() - begin
    for connection in stalled:
        while connection.recv(1000):
            pass
    return (
        f"{count} stalled: another is answered in {took:.2f} s, all are closed within {time.monotonic() - begin:.0f} s"
    )


def _victim() -> None:
    connection = HTTPConnection(HOST, PORT)
    connection.request("POST", CHAT, json.dumps(LONG), {"content-type": "application/json"})
    connection.getresponse().read()


def killed(count: int = 10) -> str:
    """kill -9 of clients in the middle of their streams."""
    processes = [multiprocessing.Process(target=_victim) for _ in range(count)]
    for process in processes:
        process.start()
    while not figure("mlx_delta_answers_running"):
        time.sleep(0.05)
    time.sleep(1)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return f"{count} clients killed: nothing under way after {settled():.2f} s"


def steady() -> str:
    """Answers stay what they are, and memory too: after the first tenth, which fills caches."""
    body = json.dumps(ASK).encode()

    def ask(_: int) -> str:
        connection = HTTPConnection(HOST, PORT, timeout=120)
        connection.request("POST", CHAT, body, {"content-type": "application/json"})
        found: str = json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]
        connection.close()
        return found

    sizes = []
    texts: Counter[str] = Counter()
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            texts.update(pool.map(ask, range(REQUESTS // 10)))
            sizes.append(figure("process_resident_memory_bytes") / 1e6)
    assert len(texts) == 1, texts
    sockets = figure("process_open_fds")
    told = ", ".join(f"{size:.0f}" for size in sizes)
    took = time.monotonic() - begin
    return f"{REQUESTS} requests by 8 clients in {took:.0f} s, one answer: {told} MB; {sockets:.0f} files open"


def main() -> None:
    for each in (malformed, junk, half_closed, killed, slow, steady):
        print(f"{each.__name__}: {each()}", flush=True)
    settled()
    assert post(json.dumps(ASK).encode()) == 200


if __name__ == "__main__":
    main()
