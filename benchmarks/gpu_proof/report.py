"""The report: one Markdown file with a page to read, and all values as JSON at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.proof import FAILED, PASSED, SKIPPED, Row
from benchmarks.suite import table

LONGEST_CELL = 400
# Details that take lines of their own below the table.
LONG = ("findings", "log")
ABOUT_FIGURES = """\
"The engine alone" gets the same request from a plain client, in turns with the worker. A ratio is
ours divided by theirs: the median of the rounds, with the smallest and the largest. Of it/s more is
better, of all others less."""


@dataclass(frozen=True)
class Report:
    """What was found, where, and in which time."""

    machine: Mapping[str, Any]
    rows: Sequence[Row]
    seconds: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether no step has failed; skipped ones count for nothing."""
        return not any(row.status == FAILED for row in self.rows)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page() + self._values())

    def page(self) -> str:
        """The part to read."""
        counts = {status: self._count(status) for status in (PASSED, FAILED, SKIPPED)}
        result = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines = ["# GPU proof", "", *([f"**{self.note}**", ""] if self.note else [])]
        lines += [f"{result}, in {self.seconds:.0f} s.", "", "| machine | |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self.machine.items() if value]
        for engine in dict.fromkeys(row.engine for row in self.rows):
            rows = [row for row in self.rows if row.engine == engine]
            lines += ["", f"## {engine}", "", *_figures(rows), *_steps(rows), *_quotes(rows)]
        return "\n".join(lines) + "\n"

    def _values(self) -> str:
        document = {
            "passed": self.passed,
            "note": self.note,
            "seconds": self.seconds,
            "machine": self.machine,
            "steps": [row.as_json() for row in self.rows],
        }
        values = json.dumps(document, indent=1, default=str)
        title = "<details><summary>All values as JSON</summary>"
        return f"\n{title}\n\n```json\n{values}\n```\n\n</details>\n"

    def _count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)


def _figures(rows: Sequence[Row]) -> Iterator[str]:
    figures = [figure for row in rows for figure in row.figures]
    if not figures:
        return
    yield from (ABOUT_FIGURES, "", table.table(figures), "", table.counts(figures), "")
    yield from table.missed(figures)
    for curve in (curve for row in rows for curve in row.curves):
        yield from (f"{curve.name}:", "", table.points(curve), "")


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    yield "| step | result | s | largest memory, GB | details and checks |"
    yield "| --- | --- | ---: | --- | --- |"
    for row in rows:
        details = [f"{name}: {_value(it)}" for name, it in row.details.items() if name not in LONG]
        checks = [f"{name}: {'yes' if it else '**no**'}" for name, it in row.checks.items()]
        text = _cell("; ".join([*([row.reason] if row.reason else []), *details, *checks]), None)
        memory = ", ".join(f"{name} {size:g}" for name, size in row.memory.items())
        yield f"| {row.step} | {row.status} | {row.seconds:g} | {memory} | {text} |"


def _quotes(rows: Sequence[Row]) -> Iterator[str]:
    """What the worker itself has logged."""
    for row in rows:
        for name in LONG:
            if quoted := row.details.get(name):
                yield from ("", f"{row.step}, {name}:", "", *(f"    {line}" for line in quoted))


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        known = {name: it for name, it in value.items() if it is not None}
        return "(" + ", ".join(f"{name} {_value(it)}" for name, it in known.items()) + ")"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _cell(value: object, longest: int | None = LONGEST_CELL) -> str:
    return table.cell(_value(value)[:longest])
