"""What is printed after the run: figures that tests measure, and what did not run and why."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest

from support.devices import absent

_lines: defaultdict[str, list[str]] = defaultdict(list)
SUITES = ("msl", "ops_metal", "nvptx")


def report(title: str, line: str) -> None:
    """Adds a line to a part of the report."""
    _lines[title].append(line)


def lines(reports: Sequence[pytest.TestReport]) -> Iterator[str]:
    """The report: what was measured, what of the Metal kernels ran, what did not run; by pytest's own reports."""
    for title, part in _lines.items():
        yield title
        yield from ("  " + line for line in part)
    yield from metal_kernels(reports)
    yield from did_not_run(reports)


def did_not_run(reports: Sequence[pytest.TestReport]) -> Iterator[str]:
    """Skipped tests by their reason, and what no test could use on this machine."""
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in reports:
        if one.skipped and isinstance(one.longrepr, tuple):
            reasons[one.longrepr[2].removeprefix("Skipped: ")][one.nodeid.split("::")[0]] += 1
    what = [
        f"{sum(files.values())} tests of {', '.join(sorted(files))}: {reason}"
        for reason, files in sorted(reasons.items())
    ]
    what += absent()
    yield "Did not run" if what else "Did not run: nothing"
    yield from ("  " + line for line in what)


def metal_kernels(reports: Sequence[pytest.TestReport]) -> Iterator[str]:
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
    from mlx_delta.bench.cases.launches import specialisations
    from msl.runner import launched

    known = {name: use.launch.source.rsplit("decltype(", 1)[1].split("<")[0] for name, use in specialisations().items()}
    ran = [name for name in known if launched[name]]
    yield "Metal kernels run on the CPU"
    yield (
        f"  {len({known[name] for name in ran})} of {len(set(known.values()))} kernels, {len(ran)} of {len(known)} "
        f"specialisations, {sum(launched[name] for name in ran)} launches"
    )
