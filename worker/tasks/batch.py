"""The task `batch`: several inputs in one job, ordered so that each checkpoint is loaded once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from worker import log
from worker.answer import Answer, failure
from worker.errors import BatchFailed, InvalidInput, JobTimeout, ResultTooLarge
from worker.job import request
from worker.job.model_fields import ABOUT_TASK, Float, Strict
from worker.models.store.progress import listener
from worker.service.boundary import answer_of
from worker.service.parts import Worker
from worker.service.task import Job, Task
from worker.service.waiting import BatchTurn, give_turns
from worker.stopwatch import ABOUT_COST
from worker.webui.runner import finish

MOST_INPUTS = 64
_PREPARED_AT_ONCE = 3  # of the threads that all jobs share
_LONGEST_ERROR = 500  # characters, twice, if there is no room for all of it


class BatchRequest(Strict):
    """The input of a batch."""

    task: Literal["batch"] = Field(description=ABOUT_TASK)
    inputs: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=MOST_INPUTS,
        description="Inputs as they would be sent alone, each of any task but `batch`.",
    )
    timeout: Float | None = Field(
        None, ge=1, le=86_400, description="Seconds that all of it may take, at most JOB_TIMEOUT."
    )


class BatchResult(Answer):
    """The answer of the task `batch`."""

    results: list[dict[str, Any]] = Field(
        description="For each input, in the same order, the answer of its task or its error:"
        " `error`, `detail`, `message`, `code`."
    )
    failed: int = Field(description="Number of inputs that have an error.")
    timings: dict[str, float] = Field(
        description="Seconds: `queue` (wait for other jobs) and `total`; each result has its own."
        + ABOUT_COST
    )


def check(_worker: Worker, job: Job) -> BatchRequest:
    """The batch; its inputs are checked later, each as a job.

    Raises:
        InvalidInput: it is not a list of at most `MOST_INPUTS` objects.
    """
    return request.check(job.input, BatchRequest, MOST_INPUTS)


async def run(worker: Worker, job: Job, wanted: BatchRequest) -> BatchResult:
    """Prepare all inputs side by side, run them by checkpoint, and answer in their order.

    Raises:
        BatchFailed: every input has failed; its `results` have each error.
    """
    job.stopwatch.limit(wanted.timeout or worker.settings.job_timeout)
    shared = replace(
        worker,
        delivery=worker.delivery.shared(),
        images=worker.images.shared(),
        preparing=asyncio.Semaphore(_PREPARED_AT_ONCE),
    )
    turns = [BatchTurn() for _ in wanted.inputs]
    parts = [_part(job, wanted, number) for number in range(len(turns))]
    leading = asyncio.create_task(_lead(worker, job, turns))
    running = [
        asyncio.create_task(_run_one(shared, *one)) for one in zip(parts, turns, strict=True)
    ]
    try:
        await asyncio.wait(running)
    finally:
        await finish(_end(running, leading))
    results = [one.result() for one in running]
    failed = sum("error" in one for one in results)
    if failed == len(results):
        raise _all_failed(results)
    return BatchResult.model_construct(
        results=results, failed=failed, timings=job.stopwatch.timings()
    )


async def _lead(worker: Worker, job: Job, turns: list[BatchTurn]) -> None:
    def loaded() -> str:
        return worker.engine.checkpoint or worker.engine.default_checkpoint or ""

    try:
        await give_turns(turns, worker.turns, job.stopwatch, loaded)
    except JobTimeout:
        return  # each input has the same deadline, and reports it


async def _end(running: list[asyncio.Task[dict[str, Any]]], leading: asyncio.Task[None]) -> None:
    """End what still runs. The engine is free for other jobs when the last input has ended."""
    for one in running:
        one.cancel()
    await asyncio.wait(running)
    leading.cancel()
    await asyncio.wait({leading})


def _part(job: Job, wanted: BatchRequest, number: int) -> Job:
    """One input as a job of its own, with the deadline of the whole."""
    place = (number + 1, len(wanted.inputs))
    progress, stream = job.progress.part(*place), job.stream.part(*place)
    stopwatch = job.stopwatch.part(progress.entered)
    job_id = f"{job.id}-{number + 1}"
    return Job(job_id, wanted.inputs[number], stopwatch, progress, stream=stream)


async def _run_one(worker: Worker, job: Job, turn: BatchTurn) -> dict[str, Any]:
    """The input's answer or error. It runs in a context of its own, so the log has its id."""
    log.job_id.set(job.id)
    listener.set(job.progress.report)
    try:
        answer = await _answer(replace(worker, turns=turn), job)
    finally:
        turn.end()
    answer.pop("refresh_worker", None)  # the batch's own answer has it
    return answer


async def _answer(worker: Worker, job: Job) -> dict[str, Any]:
    if isinstance(job.input, dict) and job.input.get("task") == "batch":
        return failure(InvalidInput("a batch cannot contain a batch.", field="task"))
    answer = await answer_of(worker, job)
    if "delivery" in answer or worker.delivery.fits(answer):
        return answer
    if "error" in answer:  # without its details
        return {
            name: answer[name][:_LONGEST_ERROR] for name in ("error", "detail", "message", "code")
        }
    return failure(ResultTooLarge("the result has no room left beside those of the other inputs."))


def _all_failed(results: list[dict[str, Any]]) -> BatchFailed:
    codes = ", ".join(dict.fromkeys(one["code"] for one in results))
    return BatchFailed(
        f"all {len(results)} inputs failed ({codes}). The first: {results[0]['error']}",
        results=results,
    )


TASK = Task(
    name="batch",
    description="Runs several inputs as one job; each checkpoint is loaded once.",
    fields=BatchRequest,
    read=check,
    run=run,
    output=BatchResult,
)
