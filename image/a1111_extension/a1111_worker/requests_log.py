"""No line in the log for each request: the worker asks for the progress once a second.

RunPod drops lines of a worker that logs too much. The worker's own lines tell of each job.
"""

from __future__ import annotations

from types import ModuleType

from a1111_worker.expect import expect

_LOGGER = "uvicorn.access"


def log_no_requests(config: ModuleType) -> None:
    """Let uvicorn, which A1111 starts after its extensions, write no line for a request.

    Raises:
        NotAsExpected: uvicorn's logging is set up otherwise.
    """
    loggers = getattr(config, "LOGGING_CONFIG", {}).get("loggers", {})
    expect(_LOGGER in loggers, "uvicorn has a logger for requests")
    loggers[_LOGGER]["level"] = "WARNING"
