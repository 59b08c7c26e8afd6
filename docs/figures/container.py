"""The states of a container and the statuses with which it ends.

The arrows between `starting`, `ready` and `restarting` come from worker/webui/engine_state.py, the
statuses and their meanings from start.sh.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from docs.figures.svg import Drawing
from gateway.server import EXIT_REPLACE
from worker.config.settings import PROJECT
from worker.webui.engine_state import PROCESS, Event, Process

# state -> what happens in it, its top edge and its colour
STATES = {
    "pre-flight": ("the settings and the machine are checked", 44, "box"),
    "starting": ("the engine boots; models are downloaded", 202, "yellow"),
    "ready": ("jobs are taken; docker ps: healthy", 310, "green"),
    "restarting": ("the engine starts again; jobs wait", 418, "yellow"),
    "stopping": ("the running job is finished", 526, "box"),
}
# What the client of the engine knows -> the state of the container.
STATE_OF = {
    Process.UNPROVEN: "starting",
    Process.PROVEN: "ready",
    Process.GONE: "restarting",
    Process.DISTRUSTED: "restarting",
}
WORDS = {
    Event.FIRST_PICTURE: "a first picture is made",
    Event.OTHER_PROCESS: "the engine crashed",
    Event.RESTART_REQUESTED: "it must be restarted",
    Event.SAME_PROCESS: "the old process still runs",
}
# The statuses that end each state.
ENDS = {
    "pre-flight": ("2", "78", "71", "143"),
    "starting": ("69", "71"),
    "ready": (),
    "restarting": ("70",),
    "stopping": ("0", str(EXIT_REPLACE)),
}
LEFT, WIDTH, HEIGHT, ENDED, STEP = 56, 292, 54, 404, 38


def statuses() -> dict[str, str]:
    """The statuses of start.sh, from the comment at its beginning; and two of the handler."""
    script = (PROJECT / "start.sh").read_text()
    found = dict(re.findall(r"^#   (\d+) +(.+)$", script, re.MULTILINE))
    ends = {"0": "SIGTERM, or another worker is needed"}
    ends[str(EXIT_REPLACE)] = "another worker is needed, and it served HTTP"
    return {**found, **ends}


def arrows() -> dict[tuple[str, str], list[str]]:
    """Between two states of the container: the words of the events that cause it."""
    found: dict[tuple[str, str], list[str]] = {}
    for source, target, event in _transitions():
        causes = found.setdefault((source, target), [])
        if WORDS[event] not in causes:
            causes.append(WORDS[event])
    return found


def _transitions() -> Iterator[tuple[str, str, Event]]:
    for process, row in PROCESS.items():
        for event, next_ in row.items():
            if STATE_OF[process] != STATE_OF[next_]:
                yield STATE_OF[process], STATE_OF[next_], event


def draw() -> str:
    """The states from top to bottom, and on their right how the container ends in each."""
    drawing = Drawing(760, 628, "The states of a container", _description())
    drawing.text(LEFT, 26, "states", "faint small")
    drawing.text(ENDED, 26, "exit status, if it ends there", "faint small")
    for name, (meaning, top, colour) in STATES.items():
        drawing.box(LEFT, top, WIDTH, HEIGHT, colour)
        drawing.text(LEFT + 16, top + 22, name, "strong")
        drawing.text(LEFT + 16, top + 42, meaning, "small")
    for (source, target), causes in arrows().items():
        _arrow(drawing, source, target, " or ".join(causes))
    _arrow(drawing, "pre-flight", "starting", "the engine is started")
    side, middle = LEFT - 28, HEIGHT / 2
    ready, stopping = STATES["ready"][1] + middle, STATES["stopping"][1] + middle
    drawing.arrow((LEFT, ready), (side, ready), (side, stopping), (LEFT - 2, stopping))
    for state in STATES:
        _ends(drawing, state)
    return drawing.svg()


def _arrow(drawing: Drawing, source: str, target: str, label: str) -> None:
    start, end = STATES[source][1], STATES[target][1]
    down = start < end
    x = LEFT + (30 if down else 52)
    first, last = (start + HEIGHT, end - 2) if down else (start, end + HEIGHT + 2)
    drawing.arrow((x, first), (x, last))
    both = (target, source) in arrows()
    # One line below the other where an arrow leads down and another one up.
    shift = 5 if not both else -5 if down else 14
    label = f"{'↓' if down else '↑'} {label}" if both else label
    drawing.text(LEFT + 66, (first + last) / 2 + shift, label, "faint small")


def _ends(drawing: Drawing, state: str) -> None:
    meanings, top = statuses(), STATES[state][1] + (HEIGHT - 26) / 2
    for number, status in enumerate(ENDS[state]):
        y = top + STEP * number
        drawing.arrow((LEFT + WIDTH, top + 13), (ENDED - 2, y + 13))
        drawing.box(ENDED, y, 44, 26, "green" if status == "0" else "red")
        drawing.text(ENDED + 22, y + 18, status, "strong middle")
        lines = textwrap.wrap(meanings[status], 46)
        drawing.lines(ENDED + 54, y + 18 - 8 * (len(lines) - 1), lines, "small", 16)


def _description() -> str:
    meanings = statuses()
    moves = [f"{a} to {b}: {' or '.join(causes)}." for (a, b), causes in arrows().items()]
    ends = [
        f"Status {status} ends {state}: {meanings[status]}."
        for state, mine in ENDS.items()
        for status in mine
    ]
    return " ".join([*moves, *ends])
