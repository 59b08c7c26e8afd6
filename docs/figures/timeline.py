"""Where the seconds of a job go, drawn from answers that record.py has recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.figures.svg import Drawing, Point

FILE = Path(__file__).with_name("timings.json")
# phase -> what happens in it, and its colour; in the order of time
PHASES = {
    "validate": ("the input is checked", "box"),
    "prepare": ("models are found or downloaded", "yellow"),
    "queue": ("another job has the engine", "violet"),
    "generate": ("the engine draws", "green"),
    "deliver": ("the pictures are packed or uploaded", "box"),
}
LEFT, RIGHT, TOP, ROW = 200, 740, 76, 58
SHORT = 0.05  # seconds; a shorter phase is not drawn, because nobody could see it


def draw() -> str:
    """A row for each job, all with one scale of seconds."""
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())
    longest = max(_start(row) + row["timings"]["total"] for row in rows)
    drawing = Drawing(
        760,
        TOP + ROW * len(rows) + 72,
        "Where the seconds of a job go",
        " ".join(_sentence(row) for row in rows),
    )
    scale = (RIGHT - LEFT) / longest
    bottom = TOP + ROW * len(rows)
    drawing.text(16, 32, "seconds", "faint small")
    for second in range(int(longest) + 1):
        x = LEFT + second * scale
        drawing.rule((x, 42), (x, bottom - 20))
        drawing.text(x, 32, str(second), "faint small middle")
    for number, row in enumerate(rows):
        _row(drawing, row, TOP + ROW * number, scale)
    _legend(drawing, bottom + 14)
    return drawing.svg()


def _row(drawing: Drawing, row: dict[str, Any], y: float, scale: float) -> None:
    drawing.text(16, y + 10, row["job"], "small")
    x: float = LEFT
    if start := _start(row):
        _bar(drawing, (x, y), start * scale, f"start {start:.1f} s", "blue")
        x += start * scale
    for phase, (_, colour) in PHASES.items():
        seconds = row["timings"][phase]
        if seconds >= SHORT:
            _bar(drawing, (x, y), seconds * scale, f"{phase} {seconds:.1f} s", colour)
            x += seconds * scale


def _bar(drawing: Drawing, at: Point, width: float, text: str, colour: str) -> None:
    x, y = at
    drawing.box(x, y - 10, width, 34, colour)
    drawing.text(x + width / 2, y + 12, text, "small middle")


def _legend(drawing: Drawing, y: float) -> None:
    meanings = [f"{phase}: {meaning}" for phase, (meaning, _) in PHASES.items()]
    parts = ["start: the engine boots, the SDK is imported", *meanings]
    for number, part in enumerate(parts):
        drawing.text(16 + 370 * (number % 2), y + 20 * (number // 2), part, "faint small")


def _start(row: dict[str, Any]) -> float:
    """Seconds of the worker's start; only the first answer of a worker has them."""
    return float(row.get("startup", {}).get("total", 0))


def _sentence(row: dict[str, Any]) -> str:
    start = f"after a start of {_start(row):.1f} s, " if _start(row) else ""
    long = [f"{phase} {row['timings'][phase]:.1f} s" for phase in PHASES]
    shown = [text for text in long if not text.endswith(" 0.0 s")]
    return f"{row['job'].capitalize()}: {start}{', '.join(shown)}."
