"""``mlx-delta serve`` as a process: its ready line, what stays when it is asked to end, what it refuses."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.serve_process import bind, run
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.app import create_app
from support.serving import serving

LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 5000}


def post(address: str, **body: Any) -> HTTPConnection:
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    asked = {"messages": [{"role": "user", "content": "Count to 7."}], "temperature": 0, "enable_thinking": False}
    content = json.dumps(asked | body)
    connection.request("POST", "/v1/chat/completions", content, {"content-type": "application/json"})
    return connection


def figure(address: str, name: str) -> float:
    with urlopen(f"{address}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^{name} (.*)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def soon(address: str, name: str, value: float) -> None:
    for _ in range(600):  # on a busy machine a step takes long
        if figure(address, name) == value:
            return
        time.sleep(0.05)
    pytest.fail(f"{name}: expected {value}, found {figure(address, name)}")


def test_its_life(tiny: Path) -> None:
    """Ready; clients that go away leave nothing; asked to end it ends what it has begun; asked again it ends."""
    form = {"type": "json_schema", "json_schema": {"schema": LONG}}
    long = {"response_format": form, "max_tokens": 8000}
    with serving(tiny) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        held = []
        for _ in range(8):
            assert post(address).getresponse().read()
            held.append(figure(address, "mlx_delta_memory_active_bytes"))
        assert held[-1] - held[1] < 8e6, held  # an answer's states take half as much

        for stream in (True, False):
            gone = post(address, **long, stream=stream)
            soon(address, "mlx_delta_answers_running", 1)
            gone.sock.close()
            soon(address, "mlx_delta_answers_running", 0)

        going = post(address, **long, stream=True).getresponse()
        short = post(address, stream=True).getresponse()
        assert going.readline().startswith(b"data: ")
        assert short.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert short.read().rstrip().endswith(b"data: [DONE]")
        assert going.readline() == b"\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert [line["status"] for line in lines[8:10]] == [200, 499]


def test_a_client_that_reads_nothing_is_closed(tiny: Path) -> None:
    """With what it was to be sent, and others are answered meanwhile."""
    code = "import mlx_delta.cli.serve_process as p; p._UNREAD_SECONDS = 1; from mlx_delta.__main__ import main; main()"
    form = {"type": "json_schema", "json_schema": {"schema": LONG}}
    with serving(tiny, program=[sys.executable, "-c", code]) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            asked = {"response_format": form, "max_tokens": 8000, "stream": True, "logprobs": True, "top_logprobs": 20}
            body = json.dumps({"messages": [{"role": "user", "content": "Count to 7."}], **asked}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            soon(address, "mlx_delta_answers_running", 1)
            assert post(address).getresponse().read()
            soon(address, "mlx_delta_answers_running", 0)
            taken = b""
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(1 << 16):
                    taken += data
            assert b"[DONE]" not in taken
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "a client took nothing for 1 seconds: its connection is closed" in process.stderr.read()


def test_a_port_that_is_taken_while_a_model_loads(model: LanguageModel) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def second(port: int) -> None:  # where the system refuses the address at once, this ends at once
        with bind("127.0.0.1", port) as other:
            one.listen()
            run(create_app(model, name="tiny"), other, "")

    with bind("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port: expected a free one at 127\.0\.0\.1, found {port}: Address"):
            second(port)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port: expected a free one at 127\.0\.0\.1, found {port}"):
            bind("127.0.0.1", port)
