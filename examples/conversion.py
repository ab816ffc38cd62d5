"""Quantize a checkpoint, load the result, and compare: python examples/conversion.py --model DIR --output OUT."""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx_delta

TINY = Path(__file__).parent / "tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY, help="an unquantized checkpoint; default: the tiny example")
    parser.add_argument("--imatrix", type=Path, default=TINY / "imatrix.gguf", help="its importance matrix")
    parser.add_argument("--output", type=Path, required=True, help="directory to create")
    arguments = parser.parse_args()

    plan = mlx_delta.convert(
        arguments.model, arguments.output, recipe="unsloth", imatrix=arguments.imatrix, dry_run=True
    )
    print(f"{plan.bytes_predicted:,} bytes to write, {plan.bits_per_weight:.2f} bits a weight")

    report = mlx_delta.convert(arguments.model, arguments.output, recipe="unsloth", imatrix=arguments.imatrix)
    for row in report.components:
        print(f"{row.component:24} {row.bits:>9} {row.nbytes:>12,}")

    question = [{"role": "user", "content": "Count to 7."}]
    for directory in (arguments.model, arguments.output):
        print(f"{directory.name}: {mlx_delta.load_model(directory).chat(question, temperature=0).text}")


if __name__ == "__main__":
    main()
