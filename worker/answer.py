"""The answer of a job that failed, and any answer as strict JSON.

The SDK loses a result without a word if it holds bytes, NaN or a lone surrogate, and it reports a
failed job as COMPLETED without output if `error` is not a non-empty string.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from worker.errors import WorkerError

FAILED = "Failed to process inference request"


def failure(error: WorkerError, *, retire: bool = False) -> dict[str, Any]:
    """`error` makes the SDK report FAILED; `refresh_worker` replaces this worker."""
    told = {"error": str(error), "message": FAILED, "code": error.code, **error.details}
    return _plain_object(told | ({"refresh_worker": True} if retire else {}))


def _plain_object(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(item) for key, item in value.items()}


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON-like value
    """The value as strict JSON takes it: no NaN, no tuple, no lone surrogate, keys are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        # isascii is a flag lookup; a picture's megabytes are not copied.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int | float | None) else str(value)
