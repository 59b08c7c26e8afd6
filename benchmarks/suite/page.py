"""docs/benchmarks.md, made from the results."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks.suite import table
from benchmarks.suite.figures import Curve, Found
from benchmarks.suite.machine import QUIET_CORES
from benchmarks.suite.results import Results

INTRODUCTION = """\
# Benchmarks

Each figure was measured beside a rival or a limit, in the same run and in turns, so that a busy
machine slows both sides. A ratio is ours divided by theirs: the median of the rounds, with the
smallest and the largest in brackets. Less is better, except where the goal has ≥.
[How to run them](../benchmarks/README.md); on a GPU: [gpu-benchmarks.md](gpu-benchmarks.md).

`make bench` measures everything again and writes this page.
"""


def page(results: Results) -> str:
    """The whole page as Markdown."""
    figures = [figure for row in results.rows for figure in row.figures]
    parts = [INTRODUCTION, _machine(results), "## All figures\n", table.table(figures)]
    parts += [f"\n{table.counts(figures)} Each missed one has its reason below.\n"]
    parts += [section for row in results.rows for section in _sections(row)]
    return "\n".join(parts).rstrip() + "\n"


def plot_file(curve: Curve) -> str:
    """The name of the curve's plot in docs/images."""
    return f"bench-{re.sub(r'[^a-z0-9]+', '-', curve.name.lower()).strip('-')}.svg"


def _machine(results: Results) -> str:
    lines = ["| machine | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in results.machine.items()]
    busy = max((row.busy_cores for row in results.rows), default=0.0)
    said = "quiet" if busy <= QUIET_CORES else "not quiet: repeat the run"
    lines += [f"| other programs, before each row | at most {busy:.2f} cores ({said}) |"]
    if results.quick:
        lines += ["", "**A quick run: small sizes, one round. No figure means anything.**"]
    return "\n".join(lines) + "\n"


def _sections(row: Found) -> Iterator[str]:
    yield f"## {row.title}\n"
    yield row.about.strip() + "\n"
    yield from table.missed(row.figures)
    for curve in row.curves:
        yield f"![{described(curve)}](images/{plot_file(curve)})\n"


def described(curve: Curve) -> str:
    """The plot in words, for a reader who does not see it: the two ends of each line."""
    ends = [
        f"{side}: {' to '.join(f'{table.number(y)} at {table.number(x)}' for x, y in ends)}"
        for side, line in curve.lines.items()
        for ends in [(line[0], *line[1:][-1:])]
    ]
    return f"{curve.name}. {curve.y} by {curve.x}; {'; '.join(ends)}".replace("]", ")")
