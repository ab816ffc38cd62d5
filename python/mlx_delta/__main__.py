"""``mlx-delta`` and ``python -m mlx_delta``: light, so that Ctrl-C is looked after from the start."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit with its status: 130 after Ctrl-C, whatever was being imported."""
    rank = False
    try:
        from mlx_delta.cli.process import orderly
        from mlx_delta.distributed.meeting import COMMANDS, begin
        from mlx_delta.errors import ArgumentError

        with orderly():
            try:
                # That other ranks hear of this one's end, whatever was being imported.
                rank = begin(COMMANDS) is not None
            except ArgumentError as error:
                sys.exit(f"error: {error}")
            from mlx_delta.cli.main import run

            run()
    except KeyboardInterrupt:
        _exit(130, rank)
    except SystemExit as end:
        _exit(end.code, rank)


def _exit(status: int | str | None, rank: bool) -> None:
    """A rank is gone at once: MLX and Python would wait for threads, which may wait for other ranks."""
    if not rank:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    main()
