"""docs/benchmarks.md, made from the results."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks.suite.figures import Curve, Figure, Found
from benchmarks.suite.machine import QUIET_CORES
from benchmarks.suite.results import Results

INTRODUCTION = """\
# Benchmarks

Each figure was measured beside a rival or a limit, in the same run and in turns, so that a busy
machine slows both sides. A ratio is ours divided by theirs, so less is better; it is the median of
the rounds, with the smallest and the largest in brackets.
[How to run them](../benchmarks/README.md); on a GPU: [gpu-benchmarks.md](gpu-benchmarks.md).

`make bench` measures everything again and writes this page.
"""
HEAD = (
    "| what | ours | rival or limit | theirs | ratio | goal | |\n|---|---:|---|---:|---:|---|---|"
)


def page(results: Results) -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, _machine(results), "## All figures\n", HEAD]
    parts += [_line(figure) for row in results.rows for figure in row.figures]
    parts += [f"\n{_counts(results)}\n"]
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


def _counts(results: Results) -> str:
    met = [figure.is_met for row in results.rows for figure in row.figures]
    missed = met.count(False)
    return f"Goals met: {met.count(True)}; missed: {missed}. Each missed one has its reason below."


def _line(figure: Figure) -> str:
    other = figure.other_value
    cells = [
        figure.name,
        f"{_number(figure.our_value)} {figure.unit}",
        figure.other or "none",
        "" if other is None else f"{_number(other)} {figure.unit}",
        _ratio(figure),
        _goal(figure),
        {True: "met", False: "**missed**", None: ""}[figure.is_met],
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(figure: Figure) -> str:
    if not figure.ratios:
        return ""
    ratios = sorted(figure.ratios)
    middle = _number(_median(ratios))
    if len(ratios) == 1:
        return middle
    return f"{middle} ({_number(ratios[0])} to {_number(ratios[-1])})"


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    word = "at least" if figure.goal.at_least else "at most"
    unit = "x" if figure.goal.of == "ratio" else f" {figure.unit}"
    return f"{word} {figure.goal.limit:g}{unit}"


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004 - three digits before the point
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _sections(row: Found) -> Iterator[str]:
    yield f"## {row.title}\n"
    yield row.about.strip() + "\n"
    for figure in row.figures:
        if figure.is_met is False:
            reason = figure.why_missed or "The reason is not known yet."
            yield f"**Missed: {figure.name}.** {reason}\n"
    for curve in row.curves:
        yield f"![{curve.name}](images/{plot_file(curve)})\n"
