"""The boundary of a job: whatever happens in its task becomes an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worker.answer import failure, to_json
from worker.delivery import s3_config
from worker.errors import InternalError, MachineExhausted, WorkerError
from worker.exhaustion import is_exhaustion
from worker.formats.names import without_suffix
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.translation.other_workers import understood

log = logging.getLogger("worker.handler")


def read(worker: Worker, job: Job) -> Job:
    """The job with its input in our own form, where it has that of another worker.

    Raises:
        InvalidInput: the other form has no counterpart here.
    """
    titles = _titles(worker) if isinstance(job.input, Mapping) and "api" in job.input else {}
    found = understood(job.input, titles)
    return replace(job, input=found.input, notes=found.notes)


def with_bucket_of(job: Job, worker: Worker) -> Worker:
    """The worker that delivers to the bucket of the job's `s3Config`, if it has one.

    Raises:
        InvalidInput: it is incomplete, or wrong.
    """
    bucket = s3_config.read(job.s3_config)
    if bucket is None:
        return worker
    return replace(worker, delivery=worker.delivery.to_bucket_of_job(bucket))


def _titles(worker: Worker) -> dict[str, str]:
    """Display names of templates; a checkpoint's own name always means the checkpoint."""
    files = worker.models.list_files("checkpoint")
    taken = {form for name in files for form in (name, without_suffix(name))}
    titles = worker.templates.titles().items()
    return {title: name for title, name in titles if title not in taken}


async def answer_of(worker: Worker, job: Job) -> dict[str, Any]:
    """Run the job's task; returns its answer or its error as JSON, raises only when cancelled."""
    log.info("started")
    if worker.threads.are_hanging() and not worker.engine.retiring:
        worker.engine.retire(
            "files of models or templates cannot be read: a volume does not answer."
        )
    task: Task[Worker] | None = None
    try:
        job = await worker.threads.run(job.stopwatch, read, worker, job)
        task = worker.tasks.of(job.input)
        worker.counters.runs(job.id, task.name)
        delivering = await worker.threads.run(job.stopwatch, with_bucket_of, job, worker)
        answer = await task(delivering, job)
    except WorkerError as error:
        is_machine = isinstance(error, MachineExhausted) or is_exhaustion(error)
        problem = _exhausted(worker, error) if is_machine else error
        log.warning("failed %s: %s", job.stopwatch.timings(), problem)
        job = replace(job, notes=(*job.notes, *await job.stream.warnings()))
        return _failed(task, job, problem, retire=bool(worker.engine.retiring))
    except asyncio.CancelledError:
        log.warning("cancelled %s", job.stopwatch.timings())
        raise
    except Exception as error:  # the job boundary: the caller gets an id, the log gets the rest
        if is_exhaustion(error):
            problem = _exhausted(worker, error)
            log.exception("the machine is exhausted")
            await job.stream.lost()
            return _failed(task, job, problem, retire=bool(worker.engine.retiring))
        problem = InternalError.with_id()
        log.exception("internal error %s", problem.details["id"])
        await job.stream.lost()  # the pictures that were finished before
        return _failed(task, job, problem)
    log.info("done %s", job.stopwatch.timings())
    return _noted(to_json(answer, retire=bool(worker.engine.retiring)), job)


def _exhausted(worker: Worker, error: Exception) -> WorkerError:
    """The error of a job that met an exhausted machine; also has the worker replaced.

    An error of a model, of its host or of the delivery may be raised only because the machine is
    exhausted. It says nothing about them then, so the caller gets its text under another code.
    """
    worker.engine.retire("the machine is exhausted")
    if isinstance(error, MachineExhausted):
        return error
    if isinstance(error, WorkerError):
        problem = MachineExhausted(f"the machine is exhausted: {error.message}")
        problem.details = error.details
        return problem
    return MachineExhausted(f"the machine is exhausted: {type(error).__name__}.")


def _failed(
    task: Task[Worker] | None, job: Job, error: WorkerError, *, retire: bool = False
) -> dict[str, Any]:
    """The error as the answer of this task; None: the job names no task that there is."""
    if task and task.failure:
        return to_json(task.failure(error, job), retire=retire)
    return _noted(failure(error, retire=retire), job)


def _noted(answer: dict[str, Any], job: Job) -> dict[str, Any]:
    """The answer with the job's notes; tasks with warnings of their own have them already."""
    own = answer.get("warnings", list(job.notes))
    return {**answer, "warnings": own} if job.notes else answer
