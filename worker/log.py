"""The log: one line per event, with the job's id and phase, and with secrets hidden."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHORTEST_SECRET = 6
# Characters that end a line, move the cursor or reverse the direction, without \n and \t.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

job_id: ContextVar[str] = ContextVar("job_id", default="-")
phase: ContextVar[str] = ContextVar("phase", default="-")  # of that job


LOGGERS = ("worker", "gateway", "uvicorn")  # these and their children

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


class _Redacting(logging.Filter):
    """Adds the job's id and phase, and hides secrets in the finished text of a line."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = _longest_first(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.job, record.phase = ascii(job_id.get())[1:-1], phase.get()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        secrets = _longest_first([*self._secrets, *_of_jobs]) if _of_jobs else self._secrets
        for secret in secrets:
            text = text.replace(secret, "***")
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


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        place = {"requestId": record.__dict__["job"], "phase": record.__dict__["phase"]}
        return json.dumps({**place, "level": record.levelname, "message": record.getMessage()})


def configure(level: str, form: str, secrets: Iterable[str]) -> None:
    """Write the log to standard error; replaces an earlier setup.

    Args:
        level: name of the lowest level that is written.
        form: "json" or "text".
        secrets: texts to hide.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_Redacting(secrets))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        # `import runpod` adds a handler to the root logger: each line would be written twice.
        logger.propagate = False
    # Below this level it writes lines about its start and end, which say nothing to our users.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger("worker").level))
