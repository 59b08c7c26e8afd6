"""Runs each part of the diagnosis in a process of its own, with its own time limit.

A thread that asks a volume which hangs cannot be stopped, and it would keep its process alive. A
child process is killed and left behind: what it has written until then is kept. A crash, an
endless loop or an exception of one part costs nothing of the others either.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

MOST = 1 << 20  # bytes of one part
_CHUNK = 64 << 10
_END = b"\0"  # of the text; the problem follows, which is empty after a success
_IS_POSIX = hasattr(os, "fork")


@dataclass(frozen=True)
class Section:
    """A part of the diagnosis.

    Attributes:
        lines: yields its text; it runs in a child process.
        seconds: it is killed after that.
    """

    title: str
    lines: Callable[[], Iterable[str]]
    seconds: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """The text of a part, and why it is not complete; that is empty if it is."""

    text: str
    problem: str = ""


@dataclass
class _Child:
    section: Section
    pid: int = 0
    pipe: int = -1
    until: float = 0.0
    content: bytearray = field(default_factory=bytearray)
    problem: str = ""

    def outcome(self) -> Outcome:
        """What it has written; of a killed one the last line may be a part of a line."""
        text, ended, problem = bytes(self.content).partition(_END)
        if not ended:
            text = text[: text.rfind(b"\n") + 1]
        found = self.problem or problem.decode(errors="replace")
        if not (ended or found):
            found = "its process ended unexpectedly"
        return Outcome(text.decode(errors="replace"), found)


def gather(sections: Sequence[Section]) -> list[Outcome]:
    """Run all of them side by side; as long as the slowest of them, at most its `seconds`."""
    if not _IS_POSIX:  # the bridge on Windows
        return [_run_here(section) for section in sections]
    children = [_start(section) for section in sections]
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.pid:
                selector.register(child.pipe, selectors.EVENT_READ, child)
        while selector.get_map():
            _read(selector)
    return [child.outcome() for child in children]


def _run_here(section: Section) -> Outcome:
    lines: list[str] = []
    try:
        lines.extend(section.lines())
    except Exception as error:  # noqa: BLE001 - one part must not lose the others
        return Outcome("\n".join(lines), _described(error))
    return Outcome("\n".join(lines))


def _start(section: Section) -> _Child:
    child = _Child(section, until=time.monotonic() + section.seconds)
    try:
        child.pipe, writer = os.pipe()
        child.pid = os.fork()
    except OSError as error:  # no more processes or descriptors
        child.problem = f"it could not be started: {error.strerror}"
        return child
    if not child.pid:
        _be_child(section, writer)
    os.close(writer)
    return child


def _be_child(section: Section, writer: int) -> None:
    """Write the lines; this process never returns."""
    problem = ""
    try:
        os.setsid()  # nvidia-smi and others of its children are killed with it
        signal.alarm(int(section.seconds) + 2)  # in case nobody is left to kill it
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        logging.disable()
        for line in section.lines():
            os.write(writer, f"{line}\n".replace("\0", "").encode(errors="backslashreplace"))
    except BaseException as error:  # noqa: BLE001 - also SystemExit
        problem = _described(error)
    with suppress(OSError):
        os.write(writer, _END + problem.encode(errors="backslashreplace"))
    os._exit(0)


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"[:2000]


def _read(selector: selectors.BaseSelector) -> None:
    """Read what the children have written by now, and end those whose time is over."""
    waiting: list[_Child] = [key.data for key in selector.get_map().values()]
    timeout = min(child.until for child in waiting) - time.monotonic()
    for key, _ in selector.select(max(0.0, timeout)):
        child: _Child = key.data
        chunk = os.read(child.pipe, _CHUNK)
        child.content += chunk
        if not chunk:
            _end(selector, child)
        elif len(child.content) > MOST:
            _end(selector, child, f"it has more than {MOST >> 10} KiB")
    for child in waiting:
        if child.pipe >= 0 and time.monotonic() >= child.until:
            _end(selector, child, f"it did not end within {child.section.seconds:g} seconds")


def _end(selector: selectors.BaseSelector, child: _Child, problem: str = "") -> None:
    """Kill it and read no more; a process in the kernel's hands is not waited for."""
    selector.unregister(child.pipe)
    os.close(child.pipe)
    child.pipe, child.problem = -1, problem
    for kill in (os.killpg, os.kill):  # it may not have its own group yet
        with suppress(OSError):
            kill(child.pid, signal.SIGKILL)
    with suppress(OSError):
        os.waitpid(child.pid, os.WNOHANG)
