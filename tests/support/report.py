"""Figures that tests measure, printed after the run: see ``pytest_terminal_summary`` in conftest.py."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest

_lines: defaultdict[str, list[str]] = defaultdict(list)
SUITES = ("msl", "ops_metal", "nvptx")


def report(title: str, line: str) -> None:
    """Adds a line to a part of the report."""
    _lines[title].append(line)


def lines(reports: Sequence[pytest.TestReport]) -> Iterator[str]:
    """The report: what was measured, and what of the Metal kernels ran, by pytest's own reports."""
    for title, part in _lines.items():
        yield title
        yield from ("  " + line for line in part)
    times: Counter[str] = Counter()
    for one in reports:
        if folder := re.match(r"tests/(\w+)/", one.nodeid):
            times[folder[1]] += one.duration
    if not times["ops_metal"]:
        return
    yield from kernels_run()
    cases = {one.nodeid for one in reports if "::test_matches_the_reference[" in one.nodeid}
    seconds = ", ".join(f"tests/{suite} {times[suite]:.0f} s" for suite in SUITES if times[suite])
    yield f"  {len(cases)} cases in a dtype; {seconds}"


def kernels_run() -> Iterator[str]:
    """Of all specialisations that the cases need, those that ran."""
    from msl.runner import launched
    from support.launches import specialisations

    known = {name: use.launch.source.rsplit("decltype(", 1)[1].split("<")[0] for name, use in specialisations().items()}
    ran = [name for name in known if launched[name]]
    yield "Metal kernels run on the CPU"
    yield (
        f"  {len({known[name] for name in ran})} of {len(set(known.values()))} kernels, {len(ran)} of {len(known)} "
        f"specialisations, {sum(launched[name] for name in ran)} launches"
    )
