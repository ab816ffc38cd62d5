"""Pictures on the command line: named by their files, and shown where a terminal can."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_delta.cli.errors import UsageError
from mlx_delta.paths import expanded

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_delta.language_model import LanguageModel

Pictures = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Picture to show with the prompt; may be given several times.", show_default="none"),
]
_WIDTH = 32  # columns, at most
_ROWS = 12
_PIXELS = 480  # of a side, of what is sent to a terminal


def picture_part(file: Path | str, model: LanguageModel | None = None) -> dict[str, Any]:
    """The part of a message that shows it. model: that it is for.

    Raises: ArgumentError naming the file, for what cannot be read as a picture; UsageError for a model that sees none;
    MissingPackageError.
    """
    from mlx_delta.vision.media import picture_source
    from mlx_delta.vision.picture import decoded

    if model is not None and model.vision is None:
        raise UsageError(f"{model.path.name}: expected a model with a vision tower, found one without: {file}")
    path = expanded(file)
    source = picture_source(path, str(path))
    if isinstance(source, bytes):
        decoded(source, str(path))
    return {"type": "image", "image": str(path.absolute())}


def with_pictures(text: str, parts: Sequence[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
    """A message's content: the pictures, then the text."""
    return [*parts, {"type": "text", "text": text}] if parts else text


def show_picture(console: Console, file: Path) -> None:
    """By the protocol of kitty or of iTerm2 where the terminal has one, else as coloured half blocks; nothing where
    colours are not known, or output is no terminal."""
    from PIL import Image

    if not console.is_terminal or console.color_system not in ("truecolor", "256"):
        return
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    protocol = _protocol(os.environ)
    if protocol is None:
        _print_blocks(console, image)
        return
    image.thumbnail((_PIXELS, _PIXELS))
    out = io.BytesIO()
    image.save(out, "PNG")
    rows = max(1, min(_ROWS, round(_WIDTH / 2 * image.height / image.width)))
    console.file.write(_escaped(protocol, base64.b64encode(out.getvalue()).decode(), rows) + "\n")
    console.file.flush()


def _protocol(environment: Mapping[str, str]) -> str | None:
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" in environment or term.startswith("screen"):  # which pass neither on
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    return "iterm" if program in ("iTerm.app", "WezTerm") else None


def _escaped(protocol: str, png: str, rows: int) -> str:
    """Sources: the terminal graphics protocol of kitty; iTerm2's inline images."""
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;height={rows};preserveAspectRatio=1:{png}\a"
    pieces = [png[i : i + 4096] for i in range(0, len(png), 4096)]
    first = f"a=T,f=100,r={rows},"
    return "".join(
        f"\x1b_G{first if i == 0 else ''}m={int(i + 1 < len(pieces))};{piece}\x1b\\" for i, piece in enumerate(pieces)
    )


def _print_blocks(console: Console, image: Any) -> None:
    """Two pixels a character: the upper one its colour, the lower one what is behind it."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    scale = min(_WIDTH / image.width, 2 * _ROWS / image.height)
    width, height = max(1, round(image.width * scale)), max(2, 2 * round(image.height * scale / 2))
    small = image.resize((width, height))
    for row in range(0, height, 2):
        line = Text()
        for column in range(width):
            upper, lower = (Color.from_rgb(*small.getpixel((column, row + below))) for below in (0, 1))
            line.append("▀", Style(color=upper, bgcolor=lower))
        console.print(line)
