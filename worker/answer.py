"""The base types of a job's answer, and its conversion to JSON that the SDK can send.

The SDK loses an answer without any log line if it holds bytes, NaN or a lone surrogate, and it
reports a failed job as COMPLETED without output if `error` is not a non-empty string.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from worker.errors import WorkerError

Absent = SkipJsonSchema[None]  # `int | Absent = left_out(...)`: the key is left out, never null

FAILED = "Failed to process inference request"


ABOUT_NOTES = "What was read as what in a job with the form of another worker."


def left_out(description: str) -> Any:  # noqa: ANN401 - like pydantic's Field
    """A field that is left out of the JSON where it is None."""

    def without_default(schema: dict[str, Any]) -> None:
        del schema["default"]

    return Field(None, description=description, json_schema_extra=without_default)


class AnswerPart(BaseModel):
    """An object in an answer.

    Made with `model_construct`, which checks nothing: the values are the worker's own, pictures are
    megabytes, and the caller must get the pictures even if the engine reports an unexpected value.
    mypy checks the types, and the tests validate whole answers.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)


class Answer(AnswerPart):
    """The keys that the answer of any task may have."""

    refresh_worker: Literal[True] | Absent = left_out(
        "This worker will be replaced after the job. The RunPod SDK removes the key and acts on it."
    )


class Failure(Answer):
    """The answer of any job that failed; facts about the error are further keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    error: str = Field(description="`<CODE>: what happened. What to do.`; RunPod reports FAILED.")
    message: Literal["Failed to process inference request"] = Field(description="Always this text.")
    code: str = Field(description="The error's code, for programs; docs/errors.md lists them.")
    detail: str = Field(
        description="The same text as `error`: clients that show only a job's `output` have it."
    )
    warnings: list[str] | Absent = left_out(ABOUT_NOTES)


def failure(error: WorkerError, *, retire: bool = False) -> dict[str, Any]:
    """The `Failure` for this error, as JSON; `retire` asks RunPod to replace this worker."""
    facts: dict[str, Any] = {
        "error": str(error),
        "message": FAILED,
        "code": error.code,
        "detail": str(error),
        **error.details,
    }
    return to_json(Failure.model_construct(**facts), retire=retire)


def to_json(answer: Answer, *, retire: bool = False) -> dict[str, Any]:
    """The answer as strict JSON; `retire` asks RunPod to replace this worker."""
    request: dict[str, Any] = {"refresh_worker": True} if retire else {}
    return {**plain(answer), **request}


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON-like value
    """Convert a value to strict JSON: no NaN, no tuple, no lone surrogate, keys are text."""
    # Ordered by frequency: most values are text and numbers.
    if isinstance(value, str):
        # isascii is a flag lookup; a picture's megabytes are not copied.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return _plain_object(value)


def _plain_object(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        optional = _optional(type(value))
        given = {key: item for key, item in value if item is not None or key not in optional}
        return {key: plain(item) for key, item in given.items()}
    return str(value)


@functools.cache
def _optional(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if not field.is_required())
