"""A picture through each API is the picture of the library; a file or an address never is."""

from __future__ import annotations

import base64
import gc
import io
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mlx_delta.chat.stream import ChatStream
from mlx_delta.language_model import LanguageModel
from mlx_delta.server.app import create_app
from mlx_delta.server.limits import Limits
from mlx_delta.vision import media
from support import GOLDEN

FILE = GOLDEN / "vision" / "odd.png"
DATA = base64.b64encode(FILE.read_bytes()).decode()
URL = f"data:image/png;base64,{DATA}"
TEXT = {"type": "text", "text": "What is the capital of "}


def asked(path: str, part: dict[str, Any], text: dict[str, Any] = TEXT) -> tuple[str, dict[str, Any]]:
    message = {"role": "user", "content": [text, part]}
    field = "input" if path.endswith("responses") else "messages"
    limit = {"max_output_tokens": 8} if field == "input" else {"max_tokens": 8}
    return path, {"model": "x", field: [message], "temperature": 0, **limit}


def test_each_api_shows_it(client: TestClient, model: LanguageModel) -> None:
    message = {"role": "user", "content": [TEXT, {"type": "image", "image": FILE}]}
    expected = model.chat([message], temperature=0, max_new_tokens=8).usage.prompt_tokens
    path, body = asked("/v1/chat/completions", {"type": "image_url", "image_url": {"url": URL}})
    assert client.post(path, json=body).json()["usage"]["prompt_tokens"] == expected
    path, body = asked("/v1/responses", {"type": "input_image", "image_url": URL}, {**TEXT, "type": "input_text"})
    assert client.post(path, json=body).json()["usage"]["input_tokens"] == expected
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    path, body = asked("/v1/messages", {"type": "image", "source": source})
    counted = client.post(f"{path}/count_tokens", json=body)
    assert counted.status_code == 200, counted.text
    without = model.chat([message], temperature=0, max_new_tokens=8, enable_thinking=False).usage.prompt_tokens
    assert counted.json()["input_tokens"] in (expected, without)
    usage = client.post(path, json=body).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] in (expected, without)


@pytest.mark.parametrize("url", [str(FILE), f"file://{FILE}", "https://x.org/a.png"])
def test_nothing_is_opened_or_fetched(client: TestClient, url: str) -> None:
    for path, part in (
        ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": url}}),
        ("/v1/responses", {"type": "input_image", "image_url": url}),
        ("/v1/messages", {"type": "image", "source": {"type": "url", "url": url}}),
        ("/v1/chat/completions", {"type": "image", "image": url}),
    ):
        response = client.post(path, json=asked(path, part)[1])
        assert response.status_code == 400, (path, response.text)
    message = {"role": "user", "content": [{"type": "image", "image": url}]}
    assert client.post("/tokenize", json={"messages": [message]}).status_code == 400


def test_images_are_counted_before_any_is_decoded(model: LanguageModel) -> None:
    """A file of 57 bytes that says it holds 16.7 million pixels, of which not one is there."""
    head = (b"IHDR", struct.pack(">IIBBBBB", 4096, 4096, 8, 2, 0, 0, 0))
    chunks = (struct.pack(">I", len(content)) + kind + content for kind, content in (head, (b"IDAT", bytes(8))))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(each + struct.pack(">I", zlib.crc32(each[4:])) for each in chunks)
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    image, small = ({"type": "image_url", "image_url": {"url": each}} for each in (url, URL))
    message = {"role": "user", "content": [small, image, image]}
    one = len(model.prompt([{"role": "user", "content": [{"type": "image", "image": FILE}]}]).ids)
    for limit, wrong in ((10, 0), (one, 1), (one + 16384, 2)):
        client = TestClient(create_app(model, name="tiny", limits=Limits(image_tokens=limit)), base_url="http://[::1]")
        for path in ("/v1/chat/completions", "/tokenize"):
            refused = client.post(path, json={"messages": [message]})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, f"messages[0].content[{wrong}]"), error
            assert f"at most {limit} tokens" in error["message"]
    with TestClient(create_app(model, name="tiny"), base_url="http://[::1]") as client:
        refused = client.post("/v1/chat/completions", json={"messages": [message]})
    assert "whole picture" in refused.json()["error"]["message"]


def test_choices_share_one_picture(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded once and seen once, however many answers there are, each of which is as it is alone."""
    file = io.BytesIO()
    Image.effect_mandelbrot((160, 96), (-2, -1.5, 1, 1.5), 30).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    path, body = asked("/v1/chat/completions", {"type": "image_url", "image_url": {"url": url}})
    body |= {"temperature": 1.0, "logprobs": True}
    decoded, whole = [], media.picture_patches
    monkeypatch.setattr(media, "picture_patches", lambda *given: decoded.append(whole(*given)) or decoded[-1])
    assert model.vision is not None
    seen = model.vision.patches_computed
    with TestClient(create_app(model, name="tiny", limits=Limits(concurrent=4)), base_url="http://[::1]") as client:
        choices = client.post(path, json={**body, "n": 4, "seed": 5}).json()["choices"]
        assert len(decoded) == 1
        assert model.vision.patches_computed - seen == decoded[0].grid.patches
        for i, choice in enumerate(choices):
            alone = client.post(path, json={**body, "seed": 5 + i}).json()["choices"][0]
            assert choice == {**alone, "index": i}


def test_who_waits_holds_files_and_no_pixels(model: LanguageModel) -> None:
    """A picture of one colour is a kilobyte of PNG, and 900 KB of patches."""
    file = io.BytesIO()
    Image.new("RGB", (384, 384), "teal").save(file, "PNG")
    message = {"role": "user", "content": [TEXT, {"type": "image", "image": file.getvalue()}]}

    def held(rest: bool) -> tuple[int, ChatStream]:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        stream = model.chat_stream([message], temperature=0, max_new_tokens=4)
        if rest:
            stream.rest()
        return tracemalloc.get_traced_memory()[0] - before, stream

    tracemalloc.start()
    try:
        (whole, one), (little, other) = held(False), held(True)
    finally:
        tracemalloc.stop()
    assert whole > 8e5
    assert little < 2e5
    assert other.result().text == one.result().text
