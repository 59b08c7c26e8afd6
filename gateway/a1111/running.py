"""The jobs that clients of A1111's API wait for, as A1111 reports its own: GET /progress."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.a1111.client import Client
from gateway.jobs import JobState

_MOST_CLIENTS = 100
_MOST = 1e9  # a number of a report that is larger is none
_FIRST = 0.01  # A1111's fraction of a job that has just begun


@dataclass(eq=False)
class Drawn:
    """A job that a client waits for.

    Attributes:
        state: the newest one; it waits until the back reports another.
        stopped: set when the client has interrupted it, which may be before the back has it.
    """

    client: Client
    task: str
    came: float
    state: JobState = field(default_factory=lambda: JobState("", "IN_QUEUE"))
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class Running:
    """The jobs that have not ended. For one event loop.

    Args:
        now: the time in seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._jobs: list[Drawn] = []  # the newest is last
        self._clients: OrderedDict[Client, None] = OrderedDict()  # those of the last jobs

    def begin(self, client: Client, task: str) -> Drawn:
        """A job of this client begins."""
        self._clients[client] = None
        self._clients.move_to_end(client)
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        job = Drawn(client, task, self._now())
        self._jobs.append(job)
        return job

    def end(self, job: Drawn) -> None:
        """The job has ended, or its client has."""
        self._jobs.remove(job)

    def count(self) -> int:
        """Number of jobs."""
        return len(self._jobs)

    def interrupt(self, client: Client) -> int:
        """Stop this client's jobs; returns their number.

        A program that has drawn nothing, such as curl, stops those of all on its computer.
        """
        jobs = self._near(client) if client not in self._clients else self._own(client)
        for job in jobs:
            job.stopped.set()
        return len(jobs)

    def _own(self, client: Client) -> list[Drawn]:
        return [job for job in self._jobs if job.client == client]

    def _near(self, client: Client) -> list[Drawn]:
        return [job for job in self._jobs if job.client.address == client.address]

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

    def _shown(self, client: Client) -> Drawn | None:
        jobs = self._own(client) or self._near(client) or self._jobs
        begun = [job for job in jobs if job.state.status == "IN_PROGRESS"]
        return next(reversed(begun or jobs), None)

    def _state(self, job: Drawn | None, report: Mapping[str, Any]) -> dict[str, Any]:
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


def _fraction(job: Drawn | None, report: Mapping[str, Any]) -> float:
    if job is None or job.state.status != "IN_PROGRESS":
        return 0.0
    percent = _number(report.get("percent")) if _is_drawing(report) else 0.0
    done = 1.0 if report.get("phase") == "upload" else percent / 100
    return min(max(done, _FIRST), 1.0)


def _text(job: Drawn | None, report: Mapping[str, Any]) -> str | None:
    if job is None:
        return None
    if job.state.status == "IN_QUEUE":
        return "waiting for a worker"
    return str(report.get("message") or report.get("phase") or "started")


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < _MOST else 0.0  # type: ignore[arg-type]
