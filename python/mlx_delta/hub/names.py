"""``org/name[@revision][/file.gguf]``: what a model is called on the Hub, told apart from a path."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?"
    r"(?:/(?P<file>\S+\.gguf))?",
    re.ASCII,
)
_FILES = (".gguf", ".json", ".safetensors")


@dataclass(frozen=True)
class HubName:
    """revision: a branch, a tag or a commit; None is the main branch. file: of a repository of GGUF files."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")


def parse_name(text: str) -> HubName | None:
    """The Hub's name that ``text`` could be; None for what can only be a path: ``./a/b``, ``a/b/c``, ``a/b.gguf``."""
    found = _NAME.fullmatch(text)
    if found is None or found["repo"].endswith(_FILES):
        return None
    return HubName(**found.groupdict())
