"""What a request gets: OpenAI's answer of the job, or an error in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from gateway.http.guard import Refused
from gateway.http.json_answer import JsonAnswer
from gateway.jobs import GatewayError, JobState
from worker.errors import InvalidInput, ModelNotFound
from worker.translation.openai_images import status_of, type_of

# OpenAI's clients send a request again after 408, 409, 429 and every 5xx, unless the answer tells
# them not to. A job that failed would fail again and cost as much again.
_TRY_AGAIN = frozenset({429, 502, 503})
_FAILED = {"CANCELLED": (500, "The job was cancelled."), "TIMED_OUT": (504, "The job timed out.")}


_PICTURE = ("b64_json", "url")


class JobFailed(Exception):
    """The job ended without pictures.

    Attributes:
        status: HTTP status.
        error: OpenAI's error object.
        retry_after: seconds after which trying again makes sense; None: not known.
    """

    def __init__(
        self, status: int, error: Mapping[str, Any], retry_after: int | None = None
    ) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.error = dict(error)
        self.retry_after = retry_after

    def response(self) -> Response:
        """The answer to the request."""
        headers = {"x-should-retry": "true" if self.status in _TRY_AGAIN else "false"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JsonAnswer({"error": self.error}, self.status, headers)


def error_object(
    message: str, status: int, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"message": message, "type": type_of(status), "param": param, "code": code}


def failure_of(error: Exception) -> JobFailed:
    """OpenAI's error for one of ours: of the translation, of the gateway, or of its guard.

    Raises:
        Exception: the error itself, if it is none of these.
    """
    if isinstance(error, JobFailed):
        return error
    if isinstance(error, InvalidInput | ModelNotFound):
        details: dict[str, Any] = error.details
        status = details.get("status") or status_of(error.code, is_of_job=True)
        text = f"{error.message} {error.hint}".rstrip()
        found = error_object(text, status, error.code.lower(), details.get("param"))
        return JobFailed(status, found)
    if isinstance(error, GatewayError):
        found = error_object(str(error), error.status)
        return JobFailed(error.status, found, error.retry_after)
    if isinstance(error, Refused):
        return JobFailed(error.status, error_object(str(error), error.status))
    raise error


def answer_of(state: JobState) -> dict[str, Any]:
    """OpenAI's answer of a job that has ended.

    Raises:
        JobFailed: the job has no pictures.
    """
    output = state.output if isinstance(state.output, Mapping) else {}
    if state.status == "COMPLETED" and _are_pictures(output.get("data")):
        return dict(output)
    if output.get("object") == "error":
        known = {name: output.get(name) for name in ("message", "type", "param", "code")}
        raise JobFailed(_status(output.get("status")), known)
    status, text = _FAILED.get(state.status, (500, "The job failed."))
    if state.error:
        text = state.error
    elif state.status == "COMPLETED":
        status, text = 502, "The worker's answer has no pictures: it is older than this gateway."
    raise JobFailed(status, error_object(text, status))


def _are_pictures(data: object) -> bool:
    return isinstance(data, list) and all(isinstance(one, Mapping) and _is_one(one) for one in data)


def _is_one(item: Mapping[str, Any]) -> bool:
    found = [item[name] for name in _PICTURE if name in item]
    return bool(found) and all(isinstance(one, str) for one in found)


def _status(value: object) -> int:
    is_error = isinstance(value, int) and 400 <= value < 600  # noqa: PLR2004 - HTTP's classes
    return value if isinstance(value, int) and is_error else 500
