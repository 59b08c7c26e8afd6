"""The results of a run as a file: docs/benchmarks.json, from which the page is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.figures import Curve, Figure, Found, Goal


@dataclass(frozen=True)
class Results:
    """Everything that one run of the suite found."""

    machine: Mapping[str, str]
    rows: Sequence[Found]
    quick: bool = False

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(path: Path) -> Results:
    """Read what `Results.write` has written."""
    document = json.loads(path.read_text())
    rows = [_found(row) for row in document["rows"]]
    return Results(document["machine"], rows, document["quick"])


def _found(row: dict[str, Any]) -> Found:
    figures = [_figure(figure) for figure in row.pop("figures")]
    curves = [_curve(curve) for curve in row.pop("curves")]
    return Found(**row, figures=figures, curves=curves)


def _figure(figure: dict[str, Any]) -> Figure:
    goal = figure.pop("goal")
    ours, others = tuple(figure.pop("ours")), tuple(figure.pop("others"))
    goal = None if goal is None else Goal(**goal)
    return Figure(**figure, ours=ours, others=others, goal=goal)


def _curve(curve: dict[str, Any]) -> Curve:
    lines = {side: tuple((x, y) for x, y in points) for side, points in curve.pop("lines").items()}
    return Curve(**curve, lines=lines)
