"""Who may ask: keys, the hosts that are served, the pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mlx_delta.errors import ArgumentError, RequestError
from mlx_delta.json_files import decode_utf8

_OPEN = {"/", "/health"}  # nothing of the model


class Access:
    """keys: without any, everyone may ask. hosts: names that the server goes by, besides addresses and localhost; "*"
    is any. origins: of other sites' pages that may ask, as browsers send them; "*" is any.

    A page of a stranger's site reaches a server on this machine through the reader's browser. Browsers say which site
    asks (Origin), so those that were not named are refused. A site whose name was pointed at this machine meanwhile
    (DNS rebinding) seems to be our own: but it asks under its own name (Host), so without keys only known names are
    served.
    """

    def __init__(self, keys: Iterable[str] = (), hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._keys = [_digest(key) for key in keys]
        self._hosts = {host.lower() for host in hosts}
        self.origins = tuple(origins)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """headers: by names in lower case. Raises: RequestError 401 or 403."""
        host = headers.get("host", "")
        if not self._keys and not self._serves(host):
            message = f"host: expected localhost, an address or an allowed name, found {host:.80}"
            raise RequestError(403, message, param="host", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._welcomes(origin, host):
            message = f"origin: expected this server's own pages or an allowed site, found {origin:.80}"
            raise RequestError(403, message, param="origin", code="origin_not_allowed")
        if self._keys and path not in _OPEN and not self._knows(headers):
            raise RequestError(
                401, "expected a key, as Authorization: Bearer KEY or x-api-key: KEY", code="invalid_api_key"
            )

    def _knows(self, headers: Mapping[str, str]) -> bool:
        """Compares with all keys, whatever is found, in time that does not depend on them."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        return sum([hmac.compare_digest(digest, key) for key in self._keys]) > 0

    def _serves(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        if "*" in self._hosts or name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True

    def _welcomes(self, origin: str, host: str) -> bool:
        """Programs with a browser inside (``vscode-webview://..``) are no sites: a page cannot claim their schemes."""
        if "*" in self.origins or origin in self.origins:
            return True
        scheme, found, rest = origin.partition("://")
        if not found:  # "null": a page that hides where it comes from
            return False
        return scheme not in ("http", "https") or rest.lower() == host.lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def read_keys(file: Path) -> list[str]:
    """One key a line; empty lines and those that begin with # are none."""
    lines = [line.strip() for line in decode_utf8(file.read_bytes(), str(file), ArgumentError).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ArgumentError(f"api_key_file: expected at least one key in {file}, found none")
    return keys
