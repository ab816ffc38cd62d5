"""One stage, in this process: ``python -m mlx_delta.selfcheck STAGE WAY`` prints what it found as JSON."""

from __future__ import annotations

import json
import sys

from mlx_delta.selfcheck.stages import STAGES
from mlx_delta.selfcheck.way import way_named


def main(name: str, way: str) -> None:
    print(json.dumps(STAGES[name].function(way_named(way))))


if __name__ == "__main__":
    main(*sys.argv[1:])
