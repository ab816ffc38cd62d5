"""mkdocs hook, after the build: every link of every page leads somewhere, and no page asks the network for anything."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.exceptions import PluginError

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class _Page(HTMLParser):
    """The links of a page, the ids that others may link to, and what a browser would load with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(found.get("href", ""))
        elif tag in _LOADED and found.get(_LOADED[tag]):
            self.loaded.append(found[_LOADED[tag]])


def on_post_build(config: Any) -> None:
    """Raises: PluginError that lists all that is wrong."""
    wrong = list(problems(Path(config["site_dir"])))
    if wrong:
        raise PluginError("\n".join(["the built site:", *wrong]))


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the pages in ``site``, a line each."""
    pages = {file: _Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        if file.name == "404.html":  # its links are absolute: it stands for any address
            continue
        name = file.relative_to(site)
        for address in page.loaded:
            if urlsplit(address).scheme or address.startswith("//"):
                yield f"{name}: expected everything it loads in the site, found {address}"
            elif not (file.parent / unquote(urlsplit(address).path)).is_file():
                yield f"{name}: expected a file, found {address}"
        for address in page.links:
            link = urlsplit(address)
            if link.scheme or link.netloc:
                continue
            target = (file.parent / unquote(link.path)).resolve() if link.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: expected a page, found a link to {address}"
            elif link.fragment and target in pages and unquote(link.fragment) not in pages[target].ids:
                yield f"{name}: expected an anchor, found a link to {address}"
