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

LONG: dict[str, Any] = {"steps": 150, "batch_size": 4, "seed": 3}
IDLE_SECONDS = 30.0
TOO_LARGE: dict[str, Any] = {"width": 4096, "height": 4096, "steps": 1, "batch_size": 4}


def cancel_a_job(context: Context) -> Outcome:
    """Cancel a job in the middle of its picture; the next one must get its own picture."""
    expected = pixels(context.run(seed=4))
    worker = context.running
    job = context.submit(**LONG)
    while worker.is_idle():
        if context.plane.wait(job, POLL_SECONDS):
            raise Skipped(f"the job ended before it could be cancelled: {job.error or 'completed'}")
        context.budget.left()
    context.plane.cancel(job)
    seconds = worker.seconds_until_idle(min(IDLE_SECONDS, context.budget.left()))
    following = pixels(context.run(seed=4))
    is_same = mean_difference(expected, following) <= SAME_PICTURE
    return Outcome(
        {"seconds until the engine is idle": round(seconds, 2)},
        {"the next job draws its own picture": is_same},
    )


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
    figures = {"GB held by the proof": round(held / 1e9, 2), "error": job.error[:300]}
    if not job.error:
        raise Skipped("not provoked: the picture fitted into the memory that was left")
    following = pixels(context.run(seed=5))
    return Outcome(
        figures | {"health": context.health()},
        {
            "the error is OUT_OF_MEMORY": job.error.startswith("OUT_OF_MEMORY"),
            "the next job draws the same picture": mean_difference(expected, following)
            <= SAME_PICTURE,
        },
    )
