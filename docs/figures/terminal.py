"""client.py in a terminal, as an animation, from what record_terminal.py has recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from docs.figures.svg import Drawing

FILE = Path(__file__).with_name("terminal.json")
COLUMNS, LINE = 92, 20  # characters, and units of the drawing
LEFT, TOP = 18, 58
# Seconds: a pause is shortened to the first, and the last screen stays for the second.
LONGEST_PAUSE, END = 1.0, 6.0
TYPED = 0.8  # after a command, before its output

_CONTROL = re.compile(r"\r|\n|\x1b\[K|\x1b\[[0-9;?]*[a-zA-Z]|[^\r\n\x1b]+")


@dataclass(frozen=True)
class Shown:
    """A line of the screen, and when it is there."""

    row: int
    text: str
    start: float
    end: float


class Screen:
    """The lines of a terminal: carriage return, line feed, erase to the end of the line."""

    def __init__(self) -> None:
        self.lines = [""]
        self._column = 0

    def write(self, text: str) -> None:
        """Other control sequences, such as colours, have no effect."""
        for part in _CONTROL.findall(text):
            if part == "\r":
                self._column = 0
            elif part == "\n":
                self.lines.append("")
                self._column = 0
            elif part == "\x1b[K":
                self.lines[-1] = self.lines[-1][: self._column]
            elif not part.startswith("\x1b"):
                self._put(part)

    def _put(self, text: str) -> None:
        for start in range(0, len(text), COLUMNS):
            if self._column >= COLUMNS:
                self.lines.append("")
                self._column = 0
            piece = text[start : start + COLUMNS - self._column]
            line = self.lines[-1].ljust(self._column)
            self.lines[-1] = line[: self._column] + piece + line[self._column + len(piece) :]
            self._column += len(piece)


def screens() -> list[tuple[float, list[str]]]:
    """Each screen that differs from the one before, and when it is there for the first time."""
    screen, found, clock = Screen(), [(0.0, [""])], 0.0
    for time, text in _events():
        clock += min(time, LONGEST_PAUSE)
        screen.write(text)
        lines = [line.rstrip() for line in screen.lines]
        if lines != found[-1][1]:
            found.append((clock, lines))
    return found


def _events() -> Iterator[tuple[float, str]]:
    """Seconds since the last event, and the text."""
    for one in json.loads(FILE.read_text()):
        yield TYPED, f"$ python3 client.py {' '.join(map(_quoted, one['command']))}\n"
        before = -TYPED
        for time, text in one["output"]:
            yield time - before, text
            before = time
        yield 0.0, "\n"


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument


def shown() -> tuple[list[Shown], float]:
    """Every line that was on the screen, and the length of the animation in seconds."""
    frames = screens()
    length = frames[-1][0] + END
    frames.append((length, []))
    rows = max(len(lines) for _, lines in frames)
    found = []
    for row in range(rows):
        texts = [(time, lines[row] if row < len(lines) else "") for time, lines in frames]
        changes = [texts[0], *(new for old, new in pairwise(texts) if old[1] != new[1])]
        changes.append((length, ""))
        for (start, text), (end, _) in pairwise(changes):
            if text and end > start:
                found.append(Shown(row, text, start, end))
    return found, length


def draw() -> str:
    """The animation; without it, the last screen."""
    lines, length = shown()
    rows = 1 + max(line.row for line in lines)
    last = [line.text for line in lines if line.end == length]
    drawing = Drawing(
        760,
        TOP + LINE * rows + 14,
        "client.py in a terminal",
        f"A recording of two commands and what they print: {' / '.join(last)}",
    )
    drawing.box(6, 6, 748, TOP + LINE * rows + 2)
    for number, colour in enumerate(("red", "yellow", "green")):
        drawing.box(20 + 22 * number, 18, 13, 13, colour)
    drawing.style = _style(lines, length)
    for number, line in enumerate(lines):
        moment = "" if line.end == length else " moment"
        strong = " strong" if line.text.startswith("$ ") else ""
        y = TOP + LINE * line.row
        drawing.text(LEFT, y, line.text, f"code{strong}{moment} l{number}")
    return drawing.svg()


def _style(lines: list[Shown], length: float) -> str:
    """A line's rule: hidden, visible, hidden again, in percent of the whole."""
    rules = [
        'text[class*=" l"] { white-space: pre; }',
        ".moment { visibility: hidden; }",
        "@media (prefers-reduced-motion: no-preference) {",
    ]
    for number, line in enumerate(lines):
        start, end = (100 * time / length for time in (line.start, line.end))
        hidden = "{ visibility: hidden; }"
        until = f" {end:.2f}% {hidden}" if end < 100 else ""  # noqa: PLR2004 - percent
        rules.append(
            f"@keyframes l{number} {{ 0% {hidden} {start:.2f}% {{ visibility: visible; }}{until} }}"
            f" .l{number} {{ animation: l{number} {length:.1f}s step-end infinite; }}"
        )
    return "\n".join([*rules, "}\n"])
