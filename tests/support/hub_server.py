"""A Hugging Face Hub in small, on loopback: what huggingface_hub asks of the real one to download a model.

Large files are behind a redirect to another host (``localhost`` instead of 127.0.0.1), as the real Hub's are.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 100_000  # bytes from which a file is kept as LFS
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """One that was answered: the bytes of its body that were sent, and what it came with."""

    method: str
    path: str
    status: int
    sent: int
    token: str | None
    range: str | None


@dataclass
class Hub:
    """models: name -> file -> content. Set the others between requests.

    gated, private: names of models that need ``token``. broken: (part of a path, status) that is answered so.
    stall: after so many bytes of a large file nothing more is sent. damage: large files arrive with a wrong byte.
    """

    url: str = ""
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": COMMIT})
    token: str = "hf_good"
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    broken: tuple[str, int] | None = None
    stall: int | None = None
    damage: bool = False
    requests: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    end: threading.Event = field(default_factory=threading.Event)

    def bodies(self) -> list[Request]:
        """Requests of files' contents that were answered."""
        return [each for each in self.requests if each.method == "GET" and re.search("/resolve/|/lfs/", each.path)]

    def downloaded(self, part: str = "") -> int:
        """Bytes of the contents of large files."""
        return sum(each.sent for each in self.requests if "/lfs/" in each.path and part in each.path)


@contextmanager
def serve(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(models={name: dict(files) for name, files in models.items()})

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.end.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.hub
        if hub.broken is not None and hub.broken[0] in path:
            return self._send(hub.broken[1], {})
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return self._large(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/(.+))?", path):
            return self._api(found[1], found[2], found[3] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._send(404, {})

    def _refused(self, name: str, revision: str, *, content: bool) -> bool:
        """Whether it was answered that nothing can be had."""
        hub = self.hub
        if self._token is not None and self._token not in (hub.token, "hf_poor"):
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif name not in hub.models or (name in hub.private and self._token != hub.token):
            self._send(401 if self._token is None else 404, {"X-Error-Code": "RepoNotFound"})
        elif content and name in hub.gated and self._token != hub.token:
            self._send(401 if self._token is None else 403, {"X-Error-Code": "GatedRepo"})
        elif hub.revisions.get(revision, revision) != COMMIT:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _api(self, name: str, kind: str | None, revision: str) -> None:
        if self._refused(name, revision, content=False):
            return
        files = self.hub.models[name]
        if kind == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": _sha1(content), **_lfs(content, "oid")}
                for file, content in files.items()
            ]
            self._send(200, {}, json.dumps(entries).encode())
        else:
            siblings = [
                {"rfilename": file, "size": len(content), "blobId": _sha1(content), **_lfs(content, "sha256")}
                for file, content in files.items()
            ]
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": name in self.hub.private, "tags": []}
            self._send(200, {}, json.dumps(info).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        if self._refused(name, revision, content=True):
            return
        content = self.hub.models[name].get(file)
        if content is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if len(content) < LARGE:
            return self._send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha1(content)}"'}, content)
        digest = hashlib.sha256(content).hexdigest()
        place = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs/{digest}"
        headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "Location": place}
        return self._send(302, {"X-Repo-Commit": COMMIT, **headers})

    def _large(self, digest: str) -> None:
        files = [content for files in self.hub.models.values() for content in files.values()]
        content = next(each for each in files if len(each) >= LARGE and hashlib.sha256(each).hexdigest() == digest)
        if self.hub.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, {"ETag": f'"{digest}"'}, content)
        begin = int(wanted[1])
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self._send(206, {"ETag": f'"{digest}"', "Content-Range": span}, content[begin:])

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        request = Request(self.command, self.path, status, 0, self._token, self.headers.get("Range"))
        self.hub.requests.append(request)
        if self.command == "HEAD":
            return
        for start in range(0, len(body), 1 << 16):
            part = body[start : start + (1 << 16)]
            if self.hub.stall is not None and "/lfs/" in self.path and request.sent >= self.hub.stall:
                self.hub.stalled.set()
                self.hub.end.wait()
                return
            try:
                self.wfile.write(part)
            except OSError:  # the client is gone
                return
            request.sent += len(part)


def _sha1(content: bytes) -> str:
    """git's name of a blob"""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs(content: bytes, name: str) -> dict[str, Any]:
    if len(content) < LARGE:
        return {}
    return {"lfs": {name: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
