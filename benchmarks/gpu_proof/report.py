"""The report: report.json with everything, report.md as a page to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.proof import FAILED, PASSED, SKIPPED, Row

LONGEST_CELL = 400
# Figures that take lines of their own below the table.
LONG = ("findings", "log")


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

    def write(self, folder: Path) -> None:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row.as_json() for row in self.rows]
        document = {
            "passed": self.passed,
            "note": self.note,
            "seconds": self.seconds,
            "machine": self.machine,
            "steps": rows,
        }
        (folder / "report.json").write_text(json.dumps(document, indent=2, default=str) + "\n")
        (folder / "report.md").write_text(self.page())

    def page(self) -> str:
        """The report as Markdown."""
        counts = {status: self._count(status) for status in (PASSED, FAILED, SKIPPED)}
        result = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines = ["# GPU proof", "", *([f"**{self.note}**", ""] if self.note else [])]
        lines += [f"{result}, in {self.seconds:.0f} s.", "", "| machine | |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self.machine.items() if value]
        for engine in dict.fromkeys(row.engine for row in self.rows):
            lines += ["", f"## {engine}", "", "| step | result | s | figures and checks |"]
            lines += ["| --- | --- | ---: | --- |"]
            lines += [_line(row) for row in self.rows if row.engine == engine]
            lines += self._quotes(engine)
        return "\n".join(lines) + "\n"

    def _count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)

    def _quotes(self, engine: str) -> list[str]:
        """What the worker itself has said."""
        lines = []
        for row in self.rows:
            for name in LONG:
                if row.engine == engine and row.figures.get(name):
                    quoted = [f"    {line}" for line in row.figures[name]]
                    lines += ["", f"{row.step}, {name}:", "", *quoted]
        return lines


def _line(row: Row) -> str:
    figures = [f"{name}: {_value(it)}" for name, it in row.figures.items() if name not in LONG]
    checks = [f"{name}: {'yes' if passed else '**no**'}" for name, passed in row.checks.items()]
    text = "; ".join([*([row.reason] if row.reason else []), *figures, *checks])
    return f"| {row.step} | {row.status} | {row.seconds:g} | {_cell(text, None)} |"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        known = {name: it for name, it in value.items() if it is not None}
        return "(" + ", ".join(f"{name} {_value(it)}" for name, it in known.items()) + ")"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _cell(value: object, longest: int | None = LONGEST_CELL) -> str:
    return " ".join(_value(value).split())[:longest].replace("|", "\\|")
