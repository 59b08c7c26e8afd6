"""The jobs that clients of A1111's API wait for, as A1111 reports its own: GET /progress. Pure."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.a1111.client import Client
from gateway.jobs import JobState

_MOST_CLIENTS = 100
_MOST = 1e9  # a number of a report that is larger is none
_FIRST = 0.01  # A1111's fraction of a job that has just begun


@dataclass
class _Job:
    client: Client
    task: str
    came: float
    state: JobState


class Running:
    """The jobs that have not ended. For one event loop.

    Args:
        now: the time in seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._jobs: dict[str, _Job] = {}  # the newest is last
        self._drawn: OrderedDict[Client, None] = OrderedDict()  # the clients of the last jobs

    def see(self, client: Client, task: str, state: JobState) -> None:
        """Take the newest state of a client's job."""
        if job := self._jobs.get(state.id):
            job.state = state
        else:
            self._jobs[state.id] = _Job(client, task, self._now(), state)
            self._drawn[client] = None
            self._drawn.move_to_end(client)
            while len(self._drawn) > _MOST_CLIENTS:
                self._drawn.popitem(last=False)

    def forget(self, job_id: str) -> None:
        """The job has ended, or its client has."""
        self._jobs.pop(job_id, None)

    def count(self) -> int:
        """Number of jobs."""
        return len(self._jobs)

    def ids(self, client: Client) -> list[str]:
        """The jobs that this client may interrupt: its own.

        A program that has drawn nothing, such as curl, interrupts those of all on its computer.
        """
        own = [job_id for job_id, job in self._jobs.items() if job.client == client]
        return own if own or client in self._drawn else self._near(client)

    def _near(self, client: Client) -> list[str]:
        return [i for i, job in self._jobs.items() if job.client.address == client.address]

    def progress(self, client: Client, *, with_picture: bool = True) -> dict[str, Any]:
        """The answer of GET /sdapi/v1/progress: this client's job, or the newest one of others."""
        job = self._shown(client)
        report = job.state.output if job and isinstance(job.state.output, Mapping) else {}
        picture = report.get("preview") if with_picture else None
        return {
            "progress": _fraction(job, report),
            "eta_relative": _number(report.get("eta_seconds")) if _is_drawing(report) else 0.0,
            "state": self._state(job, report),
            "current_image": picture if isinstance(picture, str) else None,
            "textinfo": _text(job, report),
        }

    def _shown(self, client: Client) -> _Job | None:
        ids = self.ids(client) or self._near(client) or list(self._jobs)
        jobs = [self._jobs[job_id] for job_id in ids]
        begun = [job for job in jobs if job.state.status == "IN_PROGRESS"]
        return next(reversed(begun or jobs), None)

    def _state(self, job: _Job | None, report: Mapping[str, Any]) -> dict[str, Any]:
        came = job.came if job else self._now()
        return {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": f"scripts_{job.task}" if job else "",
            "job_count": 1 if job else 0,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(came)),
            "job_no": 0,
            "sampling_step": int(_number(report.get("step"))),
            "sampling_steps": int(_number(report.get("steps"))),
        }


def _is_drawing(report: Mapping[str, Any]) -> bool:
    """Whether `percent` is that of the picture, and not of a download."""
    return report.get("phase") == "generate"


def _fraction(job: _Job | None, report: Mapping[str, Any]) -> float:
    if job is None or job.state.status != "IN_PROGRESS":
        return 0.0
    percent = _number(report.get("percent")) if _is_drawing(report) else 0.0
    done = 1.0 if report.get("phase") == "upload" else percent / 100
    return min(max(done, _FIRST), 1.0)


def _text(job: _Job | None, report: Mapping[str, Any]) -> str | None:
    if job is None:
        return None
    if job.state.status == "IN_QUEUE":
        return "waiting for a worker"
    return str(report.get("message") or report.get("phase") or "started")


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < _MOST else 0.0  # type: ignore[arg-type]
