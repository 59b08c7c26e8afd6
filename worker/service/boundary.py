"""The boundary of a job: whatever happens in its task becomes an answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from worker.answer import failure, to_json
from worker.errors import InternalError, WorkerError
from worker.service.parts import Worker
from worker.service.task import Job

log = logging.getLogger("worker.handler")


async def answer_of(worker: Worker, job: Job) -> dict[str, Any]:
    """Run the job's task; returns its answer or its error as JSON, raises only when cancelled."""
    log.info("started")
    try:
        answer = await worker.tasks.of(job.input)(worker, job)
    except WorkerError as error:
        log.warning("failed %s: %s", job.stopwatch.timings(), error)
        return failure(error, retire=bool(worker.engine.retiring))
    except asyncio.CancelledError:
        log.warning("cancelled %s", job.stopwatch.timings())
        raise
    except Exception:  # the job boundary: the caller gets an id, the log gets the rest
        problem = InternalError.with_id()
        log.exception("internal error %s", problem.details["id"])
        return failure(problem)
    log.info("done %s", job.stopwatch.timings())
    return to_json(answer, retire=bool(worker.engine.retiring))
