"""mkdocs hook: pages that are not files under docs/, and links that lead out of it.

README.md, ARCHITECTURE.md, CONTRIBUTING.md and CHANGELOG.md are pages of the site too, and the command line's reference
is made from its --help texts. Links are written as GitHub wants them, relative to the file, so that they work there;
here one to a file of the repository becomes one to its page, or to the file at GitHub. One to nothing fails the build.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COMMANDS = "reference/cli.md"
OPS = "<!-- every op of mlx_delta.ops -->"  # in docs/reference/ops.md

_log = logging.getLogger("mkdocs.hooks.pages")
_LINK = re.compile(r"(?P<open>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<close>\))")
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ ]*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links to files of the repository, outside code blocks, become links of the site or to GitHub."""
    where = page.file.src_uri
    source = next((ROOT / name for name, uri in PAGES.items() if uri == where), DOCS / where)

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            return match[0]
        found = site_link(source, where, target, config["repo_url"])
        if found is None:
            _log.warning("%s: expected a file of the repository, found the link %s", source.relative_to(ROOT), target)
            return match[0]
        return f"{match['open']}{found}{match['anchor'] or ''}{match['close']}"

    markdown = markdown.replace(OPS, every_op())
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(link, markdown[end:])])


def site_link(source: Path, where: str, target: str, repository: str) -> str | None:
    """What a link from ``source``, the page ``where``, is on the site; None where no such file is."""
    file = (source.parent / target).resolve()
    if not file.is_relative_to(ROOT):
        return None
    name = file.relative_to(ROOT).as_posix()
    page = PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else None)
    if page == COMMANDS or (file.is_file() and page is not None):
        return os.path.relpath(page, Path(where).parent).replace(os.sep, "/")
    if not file.exists():
        return None
    return f"{repository}/{'tree' if file.is_dir() else 'blob'}/main/{name}"


def every_op() -> str:
    """A reference entry for each op that mlx_delta.ops exports, by its text: _core need not be built."""
    text = (ROOT / "python" / "mlx_delta" / "ops" / "__init__.py").read_text(encoding="utf-8")
    ops = re.findall(r"^from mlx_delta\.ops\.(\w+) import \1, \1_reference$", text, re.MULTILINE)
    assert ops, "ops/__init__.py: expected lines 'from mlx_delta.ops.<op> import <op>, <op>_reference', found none"
    return "\n\n".join(f"::: mlx_delta.ops.{op}.{op}" for op in ops)


def command_line() -> str:
    """Every command with its options, as Markdown."""
    sys.path.insert(0, str(ROOT / "python"))
    from mlx_delta.cli.main import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="mlx-delta")
    text = get_docs_for_click(obj=command, ctx=context, name="mlx-delta")
    text = re.sub(r"(?m)^\* `([\w-]+)`: .*\.\.\.$", lambda m: _whole(command, m), text)
    # Words of --help are plain text: no emphasis, no HTML. A paragraph that is a command is an example.
    text = re.sub(r"(?m)^(?!#|\*\*|```|\$ )(\* )?(.*)$", lambda m: (m[1] or "") + _plain(m[2]), text)
    text = re.sub(r"(?m)^((?:mlx-delta |echo ).*)$", r"```console\n$ \1\n```", text)
    return text.replace("# `mlx-delta`", "# Command line", 1)


def _whole(group: Any, line: re.Match[str]) -> str:
    """A command's line in the list of its group, with all of its first sentence."""
    for commands in (group.commands, *(c.commands for c in group.commands.values() if hasattr(c, "commands"))):
        if line[1] in commands:
            return f"* `{line[1]}`: {(commands[line[1]].help or '').split(chr(10) + chr(10))[0].strip()}"
    return line[0]


def _plain(line: str) -> str:
    if line.startswith(("mlx-delta ", "echo ")):
        return line
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if piece.startswith("`") else re.sub(r"([*_<>{}\[\]])", r"\\\1", piece) for piece in pieces)
