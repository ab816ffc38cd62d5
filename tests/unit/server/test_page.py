"""The page: whole in one file, and nothing else runs there. bench/clients/page.py tries it in a browser."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.testclient import TestClient


def test_the_page_needs_nothing_else(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert not re.search(
        r"https?://|//\w|<link(?! rel=\"icon\" href=\"data:,\")|src=|innerHTML|style=|\son\w+=\"", response.text
    )
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    names = set(re.findall(r'at\("([\w-]+)"\)', response.text))
    assert names <= set(re.findall(r'\bid="([\w-]+)"', response.text))
    controls = re.findall(r'<(?:input|textarea) id="([\w-]+)"', response.text)
    assert len(controls) >= 8
    for control in controls:
        assert f'for="{control}"' in response.text or f'class="check"><input id="{control}"' in response.text
