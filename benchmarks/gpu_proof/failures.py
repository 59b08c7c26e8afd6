"""The steps that break a job: a cancelled one, and one that does not fit into the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.gpu_proof.ballast import NoDriver, filled_gpu
from benchmarks.gpu_proof.context import (
    SAME_PICTURE,
    Context,
    Outcome,
    Skipped,
    mean_difference,
    pixels,
)
from benchmarks.gpu_proof.plane import POLL_SECONDS
from benchmarks.suite.figures import Curve, Figure, Goal

LONG: dict[str, Any] = {"steps": 150, "batch_size": 4, "seed": 3}
CANCELLED_JOBS = 5
APART = 0.07  # seconds; each job is cancelled this much later than the one before
IDLE_SECONDS = 30.0
IDLE = Goal(2.0, "value")
TOO_LARGE: dict[str, Any] = {"width": 4096, "height": 4096, "steps": 1, "batch_size": 4}


def cancel_jobs(context: Context) -> Outcome:
    """Cancel jobs at different moments of their pictures; the next job must get its own picture."""
    expected = pixels(context.run(seed=4))
    seconds = sorted(_cancel(context, APART * number) for number in range(CANCELLED_JOBS))
    following = pixels(context.run(seed=4))
    is_same = mean_difference(expected, following) <= SAME_PICTURE
    reason = "The engine finishes the step that it computes, of a batch of 4."
    figure = Figure(
        "cancelled job: until the engine is idle", "s", tuple(seconds), goal=IDLE, why_missed=reason
    )
    line = tuple((100 * (n + 1) / CANCELLED_JOBS, it) for n, it in enumerate(seconds))
    curve = Curve("Cancelled jobs", "% of them are over within", "s", {"worker": line})
    return Outcome({}, {"the next job draws its own picture": is_same}, [figure], [curve])


def _cancel(context: Context, after: float) -> float:
    """Cancel a job this many seconds after its start; returns the wait for an idle engine."""
    worker = context.running
    job = context.submit(**LONG)
    while worker.is_idle():
        if context.plane.wait(job, POLL_SECONDS):
            raise Skipped(f"the job ended before it could be cancelled: {job.error or 'completed'}")
        context.budget.left()
    context.plane.wait(job, after)
    context.plane.cancel(job)
    return worker.seconds_until_idle(min(IDLE_SECONDS, context.budget.left()))


def run_out_of_memory(
    context: Context, fill: Callable[[], AbstractContextManager[int]] = filled_gpu
) -> Outcome:
    """A job that does not fit ends with the clear error, and the next one draws as before."""
    if context.on_cpu:
        raise Skipped("not provoked: the engine computes on the CPU")
    expected = pixels(context.run(seed=5))
    worker = context.running
    try:
        with fill() as held:
            job = context.submit(**TOO_LARGE)
            context.finish(job, worker)
    except NoDriver as error:
        raise Skipped(f"not provoked: {error}") from error
    details = {"GB held by the proof": round(held / 1e9, 2), "error": job.error[:300]}
    if not job.error:
        raise Skipped("not provoked: the picture fitted into the memory that was left")
    following = pixels(context.run(seed=5))
    return Outcome(
        details | {"health": context.health()},
        {
            "the error is OUT_OF_MEMORY": job.error.startswith("OUT_OF_MEMORY"),
            "the next job draws the same picture": mean_difference(expected, following)
            <= SAME_PICTURE,
        },
    )
