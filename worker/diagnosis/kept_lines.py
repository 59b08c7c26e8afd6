"""The last lines of the log, and the jobs that they show."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from worker import kept_log
from worker.diagnosis.masking import Mask
from worker.files import read_small

FILES = {
    "the handler": kept_log.HANDLER,
    "the engine": kept_log.ENGINE,
    "start.sh": kept_log.START_SH,
    "start.sh, earlier": f"{kept_log.START_SH}.old",
}
_LINES = 400  # of each file
_LONGEST = 2000  # characters of a line
_JOBS = 60
_COLORS = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
_TEXT = re.compile(r"(\S{1,40}) +([A-Z]{1,10}) +\[(\S{1,200}) (\S{1,40})\] (.*)")
_END = re.compile(r"(done|failed|cancelled|internal error)\b(?:.*?\}: ([A-Z][A-Z_]{2,40}):)?")


def last_lines(path: Path, mask: Mask) -> Iterator[str]:
    """The last lines of a kept file; secrets are hidden before a line is cut."""
    if not path.exists():
        yield f"there is no file {path}: a worker that start.sh starts writes it"
        return
    for line in _lines(path, mask)[-_LINES:]:
        yield line if len(line) <= _LONGEST else f"{line[:_LONGEST]} [... cut ...]"


def _lines(path: Path, mask: Mask) -> list[str]:
    is_ring = not path.name.startswith(kept_log.START_SH)
    content = kept_log.read(path) if is_ring else read_small(path, 4 << 20)
    text = _COLORS.sub("", content.decode(errors="replace"))
    # A progress bar overwrites its line again and again: only its last state counts.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return mask("\n".join(lines)).splitlines()


def jobs(path: Path, mask: Mask) -> Iterator[str]:
    """The ends of the last jobs, from the handler's lines."""
    if not path.exists():
        yield "no lines of a handler are kept"
        return
    counts: Counter[str] = Counter()
    found: list[str] = []
    for line in _lines(path, mask):
        time, job, message = _parts(line)
        if ended := _END.match(message) if job not in {"", "-"} else None:
            outcome = ended[2] or ("INTERNAL_ERROR" if ended[1][0] == "i" else ended[1])
            counts[outcome] += 1
            found.append(f"{time} {job} {outcome}")
    yield "in the kept lines: " + (
        ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no job has ended"
    )
    yield from found[-_JOBS:]


def _parts(line: str) -> tuple[str, str, str]:
    """Time, job and message of a line in either format; empty for another line."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return "", "", ""
        if isinstance(record, dict):
            return "", str(record.get("requestId", "")), str(record.get("message", ""))
    found = _TEXT.match(line)
    return (found[1], found[3], found[5]) if found else ("", "", "")
