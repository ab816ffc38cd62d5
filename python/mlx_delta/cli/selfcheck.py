"""``mlx-delta selfcheck``: compile, compare and time everything on this machine, into one file to send back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_delta.errors import RedTests
from mlx_delta.progress import Bars, of


def selfcheck(
    json_: Annotated[
        Path, typer.Option("--json", dir_okay=False, help="The report: under 1 MB, without paths and names.")
    ] = Path("selfcheck.json"),
    emulate: Annotated[
        bool,
        typer.Option("--emulate", help="Emulate the GPU's kernels as a checkout's tests do, few of them."),
    ] = False,
) -> None:
    """Check and time this machine's kernels, and write a report for the project; a few minutes.

    On a Mac: compiles every Metal kernel, compares each with its reference, times them beside MLX's own, and tries how
    command buffers are best filled. Nothing is downloaded, nothing is sent. The exit status is 1 if anything is wrong.

    mlx-delta selfcheck
    """
    from mlx_delta.selfcheck.report import run_stages, write_report
    from mlx_delta.selfcheck.stages import STAGES
    from mlx_delta.selfcheck.way import way_of_this_machine

    way = way_of_this_machine(emulate)
    typer.echo({"gpu": "on this GPU", "cpu": "on the CPU: there is no Metal here", "emulate": "emulated"}[way])
    verdict = ""
    with Bars() as bars:
        show = bars.task("selfcheck", of("stages"))
        for count, report in enumerate(run_stages(way), 1):
            write_report(json_, report)
            name, found = list(report["stages"].items())[-1]
            said = "failed" if "error" in found else found.get("skipped", "ok")
            bars.close()
            typer.echo(f"{STAGES[name].what:40}{said}  ({found['seconds']:.0f} s)")
            show(count, len(STAGES))
            verdict = report["verdict"]
    typer.echo(f"{json_}: {verdict}")
    if verdict != "ok":
        raise RedTests(f"selfcheck: {verdict}")
