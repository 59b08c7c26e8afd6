"""The processes of a worker, from /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MOST = 60  # processes that are shown
_STARTED = 19  # the field of /proc/PID/stat behind its name
_LONGEST = 256 << 10  # bytes of a file in /proc
# A script or a module that only our workers run.
_PROGRAMS = re.compile(
    r"(?:.*/)?(?:handler|webui|quick_handler|model_manager)\.py|(?:.*/)?start\.sh"
)
_MODULES = {"engine", "gateway"}


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it.

    Attributes:
        program: what it runs, without further arguments: a job or a password may be among them.
        status: name -> value of its file `status`.
        started: seconds since the machine's boot.
    """

    pid: int
    parent: int
    state: str
    started: float
    program: str
    status: dict[str, str]

    @property
    def is_handler(self) -> bool:
        """Whether it is the handler of a worker."""
        return self.program.endswith("handler.py")

    @property
    def environ(self) -> dict[str, str]:
        """Its environment; empty if this user may not read it."""
        pairs = _read(f"{self.pid}/environ").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def of_workers() -> list[Process]:
    """Those that run a program of a worker, and their descendants; not this process."""
    every = list(_all())
    found = {one.pid for one in every if one.program} - {os.getpid(), os.getppid()}
    while more := {one.pid for one in every if one.parent in found} - found - {os.getpid()}:
        found |= more
    return [one for one in every if one.pid in found]


def _all() -> Iterator[Process]:
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:  # not Linux
        return
    for pid in sorted(numbers):
        fields = _read(f"{pid}/stat").rpartition(")")[2].split()
        if not fields:  # it has just ended
            continue
        lines = (line.partition(":") for line in _read(f"{pid}/status").splitlines())
        status = {name: " ".join(value.split()) for name, _, value in lines}
        words = _read(f"{pid}/cmdline").split("\0")
        started = int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
        yield Process(pid, int(fields[1]), fields[0], started, _program(words), status)


def _program(words: Sequence[str]) -> str:
    """The worker's program that a command line runs; empty for another one."""
    if "--diagnose" in words or "worker.diagnosis" in words:
        return ""
    for word, following in zip(words[:6], [*words[1:6], ""], strict=False):
        if _PROGRAMS.fullmatch(word):
            return word
        if word == "-m" and following in _MODULES:
            return f"-m {following}"
        if word.endswith("worker/kept_log.py"):
            return word
    return ""


def _read(name: str) -> str:
    with suppress(OSError), Path("/proc", name).open("rb") as file:
        return file.read(_LONGEST).decode(errors="replace")
    return ""


def lines() -> Iterator[str]:
    """A table of them."""
    boot = time.time() - float((_read("uptime") or "0").split()[0])
    yield "pid parent state started_utc threads files memory program"
    found = of_workers()
    for one in found[:_MOST]:
        started = time.strftime("%m-%dT%H:%M:%S", time.gmtime(boot + one.started))
        memory, threads = one.status.get("VmRSS", "-"), one.status.get("Threads", "-")
        name = one.program or one.status.get("Name", "?")
        yield (
            f"{one.pid} {one.parent} {one.state} {started} {threads} {_open_files(one.pid)}"
            f" {memory.replace(' ', '')} {name}"
        )
        if one.state == "D":
            yield f"    waits in the kernel: {_read(f'{one.pid}/wchan')[:60]}"
    if len(found) > _MOST:
        yield f"and {len(found) - _MOST} more"
    if not found:
        yield "none: no worker runs here"


def _open_files(pid: int) -> str:
    try:
        return str(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
    except OSError:  # another user's, or it has just ended
        return "-"
