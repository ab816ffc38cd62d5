"""``mlx-delta serve`` as a process: its ready line, what stays when it is asked to end, what it refuses."""

from __future__ import annotations

import json
import signal
import socket
from http.client import HTTPConnection
from pathlib import Path

import pytest

from mlx_delta.cli.errors import UsageError
from mlx_delta.cli.serve_process import bind
from support.serving import serving


def post(address: str, body: dict[str, object]) -> HTTPConnection:
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def test_it_is_ready_drains_and_ends(tiny: Path) -> None:
    with serving(tiny) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        body = {"messages": [{"role": "user", "content": "Count to 7."}], "stream": True, "temperature": 0}
        stream = post(address, {**body, "logprobs": True, "top_logprobs": 20}).getresponse()
        assert stream.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert stream.read().rstrip().endswith(b"data: [DONE]")
        assert process.wait(20) == 0


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port: expected a free one at 127\.0\.0\.1, found {port}"):
            bind("127.0.0.1", port)
