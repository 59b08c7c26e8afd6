"""Answers and errors in A1111's form. Pure."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.a1111.client import client_of
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import GatewayError, JobState
from worker.errors import JobError, JobTimeout, WorkerError
from worker.json_text import loads

logger = logging.getLogger(__name__)

_CODE = re.compile(r"[A-Z][A-Z_]{2,40}(?=: )")
CANCELLED = "The job was cancelled: no picture was made."
_NO_TIME = "The job took longer than the endpoint permits (executionTimeout): no picture was made."


class JobFailed(GatewayError):
    """A job ended without an answer.

    Attributes:
        code: the worker's error code, or CANCELLED, TIMED_OUT.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def output_of(state: JobState) -> Mapping[str, Any]:
    """The answer of an ended job.

    Raises:
        JobFailed: it has none; the worker's own sentence is in it.
    """
    if state.status == "CANCELLED":
        raise JobFailed(409, "CANCELLED", CANCELLED)
    if state.status == "TIMED_OUT":
        raise JobFailed(504, "TIMED_OUT", _NO_TIME)
    if state.status != "COMPLETED":
        raise _failed(state.error or f"The job ended as {state.status} without a reason.")
    if not isinstance(state.output, Mapping):
        raise JobFailed(500, "NO_ANSWER", "The job ended without an answer.")
    return state.output


def images_of(output: Mapping[str, Any]) -> list[str]:
    """The pictures of an answer, as base64 or as URLs.

    Raises:
        JobFailed: they have another form, as those of other workers.
    """
    images = output.get("images") or []
    if isinstance(images, list) and all(isinstance(one, str) for one in images):
        return images
    raise JobFailed(
        502,
        "NO_PICTURES",
        "The pictures of the answer have an unknown form: another"
        " worker than this project's has made them.",
    )


def _failed(text: str) -> JobFailed:
    found = _CODE.match(text)
    code = found[0] if found else "JOB_FAILED"
    wrong_job = {kind.code for kind in _kinds(JobError)}
    status = 422 if code in wrong_job else 504 if code == JobTimeout.code else 500
    return JobFailed(status, code, text)


def _kinds(kind: type[WorkerError]) -> Iterator[type[WorkerError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


def error_answer(request: Request, error: GatewayError | WorkerError) -> Response:
    """An error as A1111 writes it, with the sentence where any client may look for it."""
    status = error.status if isinstance(error, GatewayError) else 422
    kind = getattr(error, "code", type(error).__name__)
    text = str(error)
    # Most clients hide the sentence, so that the log is where it can be read.
    sender = (request.method, request.url.path, client_of(request).program)
    logger.warning("%s %s of %s: HTTP %d: %s", *sender, status, text)
    body = {"error": kind, "detail": text, "body": "", "errors": text}
    after = error.retry_after if isinstance(error, GatewayError) else None
    return JsonAnswer(body, status, {} if after is None else {"Retry-After": str(after)})


def with_warnings(info: object, warnings: Sequence[str]) -> str:
    """A1111's facts about a picture, with one more key for what the worker has to say."""
    text = info if isinstance(info, str) else "{}"
    if not warnings:
        return text
    try:
        facts = loads(text)
    except ValueError:
        return text
    return (
        json.dumps({**facts, "worker_warnings": list(warnings)})
        if isinstance(facts, dict)
        else text
    )
