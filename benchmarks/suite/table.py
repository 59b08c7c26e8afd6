"""Figures and curves as Markdown, for docs/benchmarks.md and the report of a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.suite.figures import Curve, Figure

HEAD = (
    "| what | ours | theirs | rival or limit | ratio | goal | |\n|---|---:|---:|---|---:|---|---|"
)
MARKS = {True: "met", False: "**missed**", None: ""}


def table(figures: Iterable[Figure]) -> str:
    """One line for each figure, below the table's head."""
    return "\n".join([HEAD, *map(_line, figures)])


def counts(figures: Iterable[Figure]) -> str:
    """How many goals are met and missed."""
    met = [figure.is_met for figure in figures]
    return f"Goals met: {met.count(True)}; missed: {met.count(False)}."


def missed(figures: Iterable[Figure]) -> Iterator[str]:
    """A paragraph for each missed goal: its reason."""
    for figure in figures:
        if figure.is_met is False:
            reason = figure.why_missed or "The reason is not known yet."
            yield f"**Missed: {figure.name}.** {reason}\n"


def points(curve: Curve) -> str:
    """The curve's values as a table: a line for each x, a column for each side."""
    sides = {side: dict(line) for side, line in curve.lines.items()}
    head = [cell(curve.x), *(f"{cell(side)}, {cell(curve.y)}" for side in sides)]
    lines = [_row(head), _row(["---:"] * len(head))]
    for x in sorted({x for line in sides.values() for x in line}):
        values = [number(line[x]) if x in line else "" for line in sides.values()]
        lines.append(_row([number(x), *values]))
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004 - three digits before the point
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(text: str) -> str:
    """A text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(figure: Figure) -> str:
    return _row(
        [
            cell(figure.name),
            _measured(figure.ours, figure.unit, with_spread=not figure.others),
            _measured(figure.others, figure.unit) if figure.others else "",
            cell(figure.other),
            f"{_middle(figure.ratios)}{_spread(figure.ratios)}" if figure.ratios else "",
            _goal(figure),
            MARKS[figure.is_met],
        ]
    )


def _measured(values: Sequence[float], unit: str, *, with_spread: bool = False) -> str:
    """The median with its unit. Beside a rival the ratios have the spread."""
    return f"{_middle(values)} {unit}{_spread(values) if with_spread else ''}".strip()


def _middle(values: Sequence[float]) -> str:
    return number(statistics.median(values))


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return ""
    return f" ({number(min(values))} to {number(max(values))})"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    sign = "≥" if figure.goal.at_least else "≤"
    unit = "x" if figure.goal.of == "ratio" else f" {figure.unit}"
    return f"{sign} {number(figure.goal.limit)}{unit}"
