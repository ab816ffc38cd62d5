"""The page at /: a small chat of one file, which loads nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()

_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _sources(tag: str) -> str:
    """Of the page's own scripts or styles, by their hashes: a browser runs no others."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)]
    return " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)


_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
    f"form-action 'none'; frame-ancestors 'none'; script-src {_sources('script')}; style-src {_sources('style')}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> Response:
    return Response(_PAGE, headers=_HEADERS, media_type="text/html")
