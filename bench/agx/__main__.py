"""The Metal kernels as an Apple GPU's machine code, by Mesa's compiler for it: registers, spills, slots a byte.

    make agx                          sets up a Debian of its own under build/agx, as root; then the table
    python -m bench.agx [REGEX]       the rows whose label matches
    python -m bench.agx --shipped     every specialisation that a published size in a recipe asks for
    python -m bench.agx --all         those, and what tests need; an hour. It goes on where it was interrupted
    python -m bench.agx --code REGEX  one kernel's disassembly

Nothing runs, and it is not Apple's compiler: what it shows is the shape of the code, which LLVM has decided before
either backend sees it. bench/agx/machine.py says what a slot is. M3 and later are not among Mesa's targets.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench.agx import table
from bench.agx.compiler import compile_kernel
from bench.agx.debian import FOLDER, Debian
from bench.agx.kernels import all_specialisations, entries


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("regex", nargs="?", default="", help="only kernels whose label matches it")
    parser.add_argument("--shipped", action="store_true", help="what models ask for instead of the table's choice")
    parser.add_argument("--all", action="store_true", help="every specialisation")
    parser.add_argument("--code", action="store_true", help="print the disassembly")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the Debian that setup.sh made")
    args = parser.parse_args()
    try:
        return run(args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace) -> int:
    """0 where every kernel compiles and none spills."""
    debian = Debian(args.folder)
    chosen = all_specialisations(args.all) if args.all or args.shipped else entries()
    selected = [entry for entry in chosen if re.search(args.regex, entry.label)]
    if not selected:
        raise ValueError(f"{args.regex}: expected part of a kernel's label, found none that matches")
    if args.code:
        for entry in selected:
            print(entry.label)
            print(compile_kernel(debian, entry.text(), entry.kernel, entry.threads).disassembly)
        return 0
    print(table.made_from(debian))
    print(table.aligned(list(table.HEAD)))
    done = []
    for row in table.rows(debian, selected):
        print(table.aligned(row.cells()), flush=True)
        done.append(row)
    if args.markdown:
        args.markdown.write_text(table.markdown(done, debian))
    bad = [row for row in done if row.code is None or row.code.spills]
    print(f"{len(done)} kernels, {len(bad)} that spill or do not compile")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
