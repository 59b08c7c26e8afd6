"""Names the field of a job in an error about its picture. Pure."""

from __future__ import annotations

from worker.errors import WorkerError


def about(field: str, error: WorkerError) -> WorkerError:
    """The same error with the field in front of its message, as `init_images.0: ...`."""
    return type(error)(f"{field}: {error.message}", hint=error.hint, **error.details)
