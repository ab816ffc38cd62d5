"""``mlx-delta`` and ``python -m mlx_delta``: light, so that Ctrl-C is looked after from the start."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status: 130 after Ctrl-C, whatever was being imported."""
    try:
        from mlx_delta.cli.process import orderly
        from mlx_delta.distributed.meeting import begin, started_within
        from mlx_delta.errors import ArgumentError

        with orderly():
            try:
                within = started_within()
            except ArgumentError as error:
                sys.exit(f"error: {error}")
            begin(within)  # that other ranks hear of this one's end, whatever was being imported
            from mlx_delta.cli.main import run

            run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
