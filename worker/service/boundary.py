"""The boundary of a job: whatever happens in its task becomes an answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from worker.answer import failure, to_json
from worker.clients.other_workers import understood
from worker.errors import InternalError, WorkerError
from worker.service.parts import Worker
from worker.service.task import Job

log = logging.getLogger("worker.handler")


def read(worker: Worker, job: Job) -> Job:
    """The job with its input in our own form, where it has that of another worker.

    Raises:
        InvalidInput: the other form has no counterpart here.
    """
    found = understood(job.input, worker.templates.titles())
    return replace(job, input=found.input, notes=found.notes)


async def answer_of(worker: Worker, job: Job) -> dict[str, Any]:
    """Run the job's task; returns its answer or its error as JSON, raises only when cancelled."""
    log.info("started")
    try:
        job = read(worker, job)
        answer = await worker.tasks.of(job.input)(worker, job)
    except WorkerError as error:
        log.warning("failed %s: %s", job.stopwatch.timings(), error)
        return _noted(failure(error, retire=bool(worker.engine.retiring)), job)
    except asyncio.CancelledError:
        log.warning("cancelled %s", job.stopwatch.timings())
        raise
    except Exception:  # the job boundary: the caller gets an id, the log gets the rest
        problem = InternalError.with_id()
        log.exception("internal error %s", problem.details["id"])
        return failure(problem)
    log.info("done %s", job.stopwatch.timings())
    return _noted(to_json(answer, retire=bool(worker.engine.retiring)), job)


def _noted(answer: dict[str, Any], job: Job) -> dict[str, Any]:
    """The answer with the job's notes; tasks with warnings of their own have them already."""
    return (
        {**answer, "warnings": list(job.notes)}
        if job.notes and "warnings" not in answer
        else answer
    )
