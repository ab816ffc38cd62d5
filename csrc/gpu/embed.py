"""Writes the C++ file that holds the shaders: each .metal file with its own includes in place, comments dropped.

    python embed.py METAL_FOLDER OUTPUT.cpp

They are compiled on the user's machine, so a wheel needs no Apple compiler.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

INCLUDE = re.compile(r'^#include "(.+)"$')


def flatten(path: Path, seen: set[Path]) -> list[str]:
    """The lines of a file, each include in its place the first time it is met."""
    if path in seen:
        return []
    seen.add(path)
    text = path.read_text()
    if not text.isascii():
        raise SystemExit(f"{path}: expected ASCII only, which is all that MLX passes to Metal")
    lines = []
    for line in re.sub(r"[ \t]*//[^\n]*", "", text).splitlines():
        include = INCLUDE.match(line)
        if include:
            lines += flatten(path.parent / include[1], seen)
        elif line.strip() and line.strip() != "#pragma once":
            lines.append(line)
    return lines


def main(folder: Path, output: Path) -> None:
    entries = []
    for path in sorted(folder.glob("*.metal")):
        text = "\n".join(flatten(path, set())) + "\n"
        entries.append(f'      {{"{path.stem}", R"metal({text})metal"}},\n')
    output.write_text(
        '#include "gpu/sources.h"\n\nnamespace mlx_delta::gpu {\n\n'
        "const std::map<std::string, std::string>& metal_sources() {\n"
        "  static const std::map<std::string, std::string> sources{\n"
        + "".join(entries)
        + "  };\n  return sources;\n}\n\n}  // namespace mlx_delta::gpu\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
