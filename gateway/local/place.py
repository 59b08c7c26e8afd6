"""Where the worker is served, and what its settings are there."""

from __future__ import annotations

from dataclasses import dataclass

from worker.config.settings import Settings

# RunPod's load balancer ends a request after 330 s, and takes answers of at most 30 MB.
_LONGEST_REQUEST, _LONGEST_JOB = 325.0, 315.0
_LARGEST_RESULT_MB = 29.0
_ENGINE_STOP = 5.0  # seconds that start.sh keeps for the engine's end, at most
_PATIENCE = 5.0


@dataclass(frozen=True)
class Place:
    """Where and how the worker is served.

    Attributes:
        health_port: another port, on which there is only /ping; None: there is none.
        grace: seconds that running jobs get after SIGTERM.
        patience: seconds after that in which clients may fetch the last answers.
        longest_request: seconds after which a waiting request is answered with an error; None: no
            limit.
    """

    host: str
    port: int
    health_port: int | None = None
    grace: float = 45.0
    patience: float = _PATIENCE
    longest_request: float | None = None


def place_of(settings: Settings, host: str, port: int) -> Place:
    """The place with these settings: the handler's part of SHUTDOWN_GRACE is divided."""
    grace = settings.shutdown_grace
    of_handler = grace - min(grace / 2, _ENGINE_STOP)
    patience = min(_PATIENCE, of_handler / 4)
    return Place(
        host,
        port,
        health_port=settings.port_health if settings.port_health != port else None,
        grace=of_handler - 2 * patience,  # as much again for the servers' end
        patience=patience,
        longest_request=_LONGEST_REQUEST if settings.is_load_balanced else None,
    )


def for_http(settings: Settings) -> Settings:
    """The settings of a worker that serves HTTP.

    The limit of results is that of RunPod's queue. Behind RunPod's load balancer there are other
    limits; elsewhere there is none unless the operator sets one.
    """
    limit = settings.result_limit_mb if "result_limit_mb" in settings.model_fields_set else 0.0
    if not settings.is_load_balanced:
        return settings.model_copy(update={"result_limit_mb": limit})
    update = {
        "result_limit_mb": min(limit or _LARGEST_RESULT_MB, _LARGEST_RESULT_MB),
        "job_timeout": min(settings.job_timeout, _LONGEST_JOB),
    }
    return settings.model_copy(update=update)
