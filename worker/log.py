"""The log: one line per event, with the job's id and phase, and with secrets hidden.

RunPod's SDK cuts messages at 4096 characters, and RunPod drops lines of a worker that logs too
much. So a longer message loses its middle here, and one line of the code writes a limited number
of messages in a minute.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from worker.kept_log import KeptLog

LONGEST = 4096  # characters of a message with its time, level and job
MOST_IN_A_MINUTE = 200  # messages of one line of the code
_MINUTE = 60.0  # seconds
_LONGEST_ID = 200  # characters of a job's id
_NOTE = 60  # characters, for the note that some were left out
_SHORTEST_SECRET = 6
_NAME = "a1111-worker"  # of our handler
# Characters that end a line, move the cursor or reverse the direction, without \n and \t.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

job_id: ContextVar[str] = ContextVar("job_id", default="-")
phase: ContextVar[str] = ContextVar("phase", default="-")  # of that job


LOGGERS = ("worker", "gateway", "uvicorn")  # these and their children, at the operator's level

# `extra` of a message whose lines are all the worker's own: they are not indented.
OWN_LINES = {"own_lines": True}


def _harmless(text: str, *, own_lines: bool) -> str:
    """The text without control characters; further lines are indented.

    So a line that begins with a time was written by the worker: text from a job cannot forge one.
    """
    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if own_lines else text.replace("\n", "\n    ")


_of_jobs: Counter[str] = Counter()  # secret -> running jobs that have it


@contextmanager
def hiding(secrets: Iterable[str]) -> Iterator[None]:
    """Hide these secrets of a job in every line while the body runs. For one event loop."""
    found = Counter(set(secrets))
    _of_jobs.update(found)
    try:
        yield
    finally:
        _of_jobs.subtract(found)
        for secret in found:
            if not _of_jobs[secret]:
                del _of_jobs[secret]


def _longest_first(secrets: Iterable[str]) -> list[str]:
    """The secrets to hide: one may contain another. A very short one would match in every line."""
    long_enough = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
    return sorted(long_enough, key=len, reverse=True)


def cut(text: str, longest: int) -> str:
    """The text; of a longer one the beginning and the end, because an exception's last line counts.

    It says how many characters are left out, and then it has at most `longest` of them.
    """
    if len(text) <= longest:
        return text
    kept = max(0, longest - _NOTE)
    end = kept // 3
    note = f" [... {len(text) - kept} characters left out ...] "
    return f"{text[: kept - end]}{note}{text[len(text) - end :]}"


class _Limiting(logging.Filter):
    """Leaves out messages of a line of the code that writes too many, and counts them.

    The next message of that line after the minute has their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._minutes: dict[tuple[str, int], tuple[float, int]] = {}  # its begin, messages in it

    def filter(self, record: logging.LogRecord) -> bool:
        line = (record.pathname, record.lineno)
        began, count = self._minutes.get(line, (record.created, 0))
        record.left_out = 0
        if not began <= record.created < began + _MINUTE:
            record.left_out = max(0, count - MOST_IN_A_MINUTE)
            began, count = record.created, 0
        self._minutes[line] = (began, count + 1)
        return count < MOST_IN_A_MINUTE


class _Redacting(logging.Filter):
    """Adds the job's id and phase, and hides secrets in the finished text of a line."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = _longest_first(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.job = cut(ascii(job_id.get()[:_LONGEST_ID])[1:-1], _LONGEST_ID)
        record.phase = phase.get()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        secrets = _longest_first([*self._secrets, *_of_jobs]) if _of_jobs else self._secrets
        for secret in secrets:
            text = text.replace(secret, "***")
        if left_out := record.__dict__.get("left_out"):
            text += f" [{left_out} messages like this were left out before it]"
        own_lines = bool(getattr(record, "own_lines", False))
        record.msg, record.args = _harmless(text, own_lines=own_lines), None
        record.exc_info, record.exc_text = None, None
        return True


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(
            "%(asctime)sZ %(levelname)-7s [%(job)s %(phase)s] %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return cut(super().format(record), LONGEST)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        place = {"requestId": record.__dict__["job"], "phase": record.__dict__["phase"]}
        message, longest = record.getMessage(), LONGEST
        while True:
            text = cut(message, longest)
            line = json.dumps({**place, "level": record.levelname, "message": text})
            if len(line) <= LONGEST:
                return line
            # Escaped characters count 2 to 12 times, so the line must get shorter by its part.
            longest = min(longest - 1, longest * LONGEST // len(line))


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # 3.11 and later
    """Writes to standard error, as long as somebody reads it.

    After a write to a closed pipe, Python's exit would fail at the same text and change the exit
    status: start.sh would take a good answer of a program for its failure.
    """

    kept: KeptLog | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line, which is kept before it is written: nobody may be reading the log."""
        line = super().format(record)
        if self.kept:
            self.kept.write(f"{line}\n".encode(errors="backslashreplace"))
        return line

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def configure(
    level: str, form: str, secrets: Iterable[str], *, keep_in: Path | None = None
) -> None:
    """Write the log to standard error; replaces an earlier setup.

    Args:
        level: name of the lowest level that is written.
        form: "json" or "text".
        secrets: texts to hide.
        keep_in: file that keeps the last lines as well, see `worker.kept_log`; None: no file.
    """
    handler = _Handler(sys.stderr)
    if keep_in:
        with suppress(OSError):  # a full disk: the log itself is more important
            handler.kept = KeptLog(keep_in)
    handler.set_name(_NAME)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_Limiting())
    handler.addFilter(_Redacting(secrets))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # Below this level it writes lines about its start and end, which say nothing to our users.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger("worker").level))
    # The libraries' own warnings, such as asyncio's tracebacks. With a handler on the root logger
    # `import runpod` adds none of its own, which would write all of them as they are.
    root = logging.getLogger()
    others = [one for one in root.handlers if one.name != _NAME]
    root.handlers[:] = [*others, handler]
