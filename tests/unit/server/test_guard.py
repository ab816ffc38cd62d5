"""What a server refuses, and what it tells of itself: keys, hosts, other sites, sizes, figures, the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_delta.errors import ArgumentError
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.access import Access, read_keys
from mlx_delta.server.app import create_app
from mlx_delta.server.limits import Limits

ASK = {"messages": [{"role": "user", "content": "Count to 7."}], "max_tokens": 4, "temperature": 0}
PATH = "/v1/chat/completions"
LIMITS = Limits(body_bytes=2000, messages=3, prompt_tokens=50, answer_tokens=5)


def client_of(model: LanguageModel, access: Access, *, log_prompts: bool = False) -> TestClient:
    app = create_app(model, name="tiny", limits=LIMITS, access=access, log_prompts=log_prompts)
    return TestClient(app, base_url="http://localhost:8080")


def status(client: TestClient, path: str = "/v1/models", **headers: str) -> int:
    return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code


def test_keys(model: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# whose\nsecond\n\n third \n")
    client = client_of(model, Access(["first", *read_keys(file)]))
    for key in ("first", "second", "third"):
        assert status(client, authorization=f"Bearer {key}") == status(client, x_api_key=key) == 200
    for wrong in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer secon"}, {"x_api_key": "# whose"}):
        assert status(client, **wrong) == 401
    refused = client.post("/v1/messages", json={})
    assert (refused.status_code, refused.json()["type"]) == (401, "error")
    assert status(client, "/metrics") == status(client, "/openapi.json") == 401
    assert status(client, "/health") == 200
    assert status(client, x_api_key="first", host="any.example") == 200  # who has a key is no stranger
    file.write_text("# none\n")
    with pytest.raises(ArgumentError, match="api_key_file"):
        read_keys(file)


def test_strangers_pages_are_refused(model: LanguageModel) -> None:
    client = client_of(model, Access(hosts=["mac.lan"], origins=["https://chat.example"]))
    for host in (
        "localhost",
        "localhost:8080",
        "127.0.0.1:1",
        "[::1]:8080",
        "192.168.1.5",
        "MAC.lan:80",
        "a.localhost.",
    ):
        assert status(client, host=host) == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "mac.lan.evil"):
        assert status(client, host=host) == 403, host
    for origin in ("http://localhost:8080", "https://chat.example", "vscode-webview://abc"):
        assert status(client, origin=origin) == 200, origin
    for origin in ("http://localhost:9090", "https://evil.example", "null", "http://chat.example"):
        assert status(client, origin=origin) == 403, origin
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    welcome = client.options(PATH, headers={"origin": "https://chat.example", **asked})
    assert welcome.headers["access-control-allow-origin"] == "https://chat.example"
    assert (
        "access-control-allow-origin" not in client.options(PATH, headers={"origin": "https://evil", **asked}).headers
    )
    assert "access-control-allow-origin" not in client_of(model, Access()).get("/health").headers


def test_sizes(model: LanguageModel) -> None:
    client = client_of(model, Access())

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    for content in (b" " * 3000, pieces()):
        large = client.post(PATH, content=content, headers=headers)
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    many = client.post(PATH, json={**ASK, "messages": ASK["messages"] * 4})  # type: ignore[operator]
    assert (many.status_code, many.json()["error"]["param"]) == (422, "messages")
    long = client.post(PATH, json={"messages": [{"role": "user", "content": "1 2 3 4 5 " * 20}]})
    assert (long.status_code, long.json()["error"]["code"]) == (422, "context_length_exceeded")
    for tokens in ({}, {"max_tokens": 100}):
        asked = {name: value for name, value in ASK.items() if name != "max_tokens"} | tokens
        assert client.post(PATH, json=asked).json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("log_prompts", [False, True])
def test_figures_and_the_log(model: LanguageModel, caplog: pytest.LogCaptureFixture, log_prompts: bool) -> None:
    client = client_of(model, Access(), log_prompts=log_prompts)
    model.engine.prefix.clear()
    with caplog.at_level(logging.INFO, "mlx_delta.server.requests"):
        answer = client.post(PATH, json=ASK)
        client.get("/nowhere/at/all")
    first, second = (json.loads(record.message) for record in caplog.records)
    expected: dict[str, Any] = {"status": 200, "path": PATH, "completion_tokens": 4}
    assert expected.items() <= first.items()
    assert first["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert first["id"] == answer.headers["x-request-id"]
    assert first["seconds"] >= first["first_seconds"] > 0
    assert second["status"] == 404
    assert ("Count to 7." in caplog.text) == log_prompts
    text = client.get("/metrics").text
    assert f'mlx_delta_requests_total{{route="{PATH}",status="200"}} 1.0' in text
    assert 'mlx_delta_requests_total{route="other",status="404"} 1.0' in text
    assert 'mlx_delta_tokens_total{kind="thinking"} 4.0' in text
    kept = float(first["cached_tokens"])
    assert f'mlx_delta_tokens_total{{kind="prompt_cached"}} {kept}' in text
    computed = float(first["prompt_tokens"] - first["cached_tokens"])
    assert f'mlx_delta_tokens_total{{kind="prompt_computed"}} {computed}' in text
    assert "mlx_delta_time_to_first_token_seconds_count 1.0" in text
    assert "mlx_delta_answers_running 0.0" in text
