"""The steps that measure jobs through the worker beside the engine alone, in turns.

"The engine alone" is the same request, sent to the engine's API by a plain client that reads and
parses the answer before it sends the next one.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any

from benchmarks.gpu_proof.context import SAME_PICTURE, Context, Outcome, mean_difference, pixels
from benchmarks.gpu_proof.plane import Job
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns

ALONE = "the engine alone"
FEW_STEPS, MOST_STEPS = 4, 44
SECONDS_PER_FIGURE, TINY_SECONDS = 2.5, 0.5
SPEED_ROUNDS = 3
BACKLOG_JOBS, BACKLOG_STEPS, BACKLOG_ROUNDS = 5, 20, 3
SIZES, SIZE_STEPS, SIZE_ROUNDS = (1, 2, 4), 10, 3  # pictures in a job
IDLE = Goal(5.0, "value")  # ms
SHARE = Goal(1.05)
LIMIT = "sd_checkpoints_limit"
FAMILIES = ("SD1", "SDXL")
SWITCH_ROUNDS = 2
SWITCH = Goal(0.3)
LEAST = 1e-3  # seconds; a switch that takes no time that can be measured


def measure_speed(context: Context, family: str, batch: int) -> Outcome:
    """Steps per second, from two jobs that differ only in their number of steps.

    What does not depend on the number of steps (text encoder, VAE, PNG, HTTP) cancels out. The
    first job loads the checkpoint and warms up.
    """
    fields: dict[str, Any] = {"batch_size": batch, "seed": 2}
    first = context.run(family, batch_size=batch, steps=FEW_STEPS)
    few = context.run(family, **fields, steps=FEW_STEPS)
    seconds = TINY_SECONDS if context.tiny else SECONDS_PER_FIGURE
    fitting = round(seconds / max(few.seconds / FEW_STEPS, 1e-3))
    steps = FEW_STEPS + min(max(fitting, FEW_STEPS), MOST_STEPS - FEW_STEPS)

    def by_worker(number: int) -> float:
        return context.run(family, **fields, steps=number).seconds

    def alone(number: int) -> float:
        return context.ask_engine(family, **fields, steps=number)

    ours, others = in_turns(
        context.rounds(SPEED_ROUNDS),
        lambda: (steps - FEW_STEPS) / max(by_worker(steps) - by_worker(FEW_STEPS), 1e-3),
        lambda: (steps - FEW_STEPS) / max(alone(steps) - alone(FEW_STEPS), 1e-3),
    )
    size = context.size(family)
    name = f"{family}, {size}x{size}, batch {batch}, {context.attention}"
    reason = f"The difference of jobs of {FEW_STEPS} and {steps} steps: noise counts fully."
    figure = Figure(name, "it/s", ours, others, ALONE, Goal(0.97, at_least=True), reason)
    details = {
        "steps": steps,
        "pictures x it/s": round(batch * figure.our_value, 3),
        "seconds of the first job": round(first.seconds, 2),
    }
    returned = len(few.output["images"]) == batch
    return Outcome(details, {"every job returns its pictures": returned}, [figure])


def measure_backlog(context: Context) -> Outcome:
    """Several jobs in the queue: seconds a picture, the engine's idle time, and CPU time."""
    context.run(steps=BACKLOG_STEPS)
    idle: list[float] = []
    cpu: list[float] = []
    last: list[Job] = []

    def by_worker() -> float:
        before = context.running.cpu_seconds()
        last[:] = _run_together(context)
        cpu.append(1000 * (context.running.cpu_seconds() - before) / BACKLOG_JOBS)
        idle.append(1000 * _idle_seconds(last))
        return (last[-1].ended - last[0].submitted) / BACKLOG_JOBS

    def alone() -> float:
        steps = BACKLOG_STEPS
        seeds = range(BACKLOG_JOBS)
        return statistics.mean(context.ask_engine(steps=steps, seed=seed) for seed in seeds)

    ours, others = in_turns(context.rounds(BACKLOG_ROUNDS), by_worker, alone)
    size, at_once = context.size("SD1"), context.concurrency
    what = f"{size}x{size}, {BACKLOG_JOBS} jobs in the queue, JOB_CONCURRENCY={at_once}"
    parts = _parts(last[-1])
    figures = [Figure(f"a job of {what}", "s", ours, others, ALONE, SHARE, parts)]
    if at_once == 1:  # with 2, the next request waits within the engine
        name = "engine idle between two of these jobs"
        figures.append(Figure(name, "ms", tuple(idle), goal=IDLE, why_missed=parts))
    figures.append(Figure("CPU time of the worker for one of these jobs", "ms", tuple(cpu)))
    same = {job.output["images"][0] for job in last}
    checks = {"every job returns a picture of its own": len(same) == BACKLOG_JOBS}
    return Outcome({"seconds of the last job's parts": last[-1].output["timings"]}, checks, figures)


def measure_sizes(context: Context) -> Outcome:
    """Jobs of one, two and four pictures, through the worker and from the engine alone."""
    figures = []
    for count in SIZES:
        fields: dict[str, Any] = {"batch_size": count, "steps": SIZE_STEPS}
        job = context.run(**fields)
        ours, others = in_turns(
            context.rounds(SIZE_ROUNDS),
            lambda: context.run(**fields).seconds,  # noqa: B023 - called before the next count
            lambda: context.ask_engine(**fields),  # noqa: B023
        )
        name = f"a job of batch size {count}, {SIZE_STEPS} steps"
        figures.append(Figure(name, "s", ours, others, ALONE, SHARE, _parts(job)))
    lines = {
        "jobs": tuple((n, f.our_value) for n, f in zip(SIZES, figures, strict=True)),
        ALONE: tuple((n, statistics.median(f.others)) for n, f in zip(SIZES, figures, strict=True)),
    }
    curve = Curve("Time of a job by its pictures", "pictures", "s", lines)
    return Outcome({}, {}, figures, [curve])


def measure_switches(context: Context) -> Outcome:
    """Seconds of a switch with the worker's number of loaded checkpoints, and with one."""
    first = pixels(context.run("SD1", **_small(context)))
    kept = int(context.running.ask("options").get(LIMIT) or 1)
    ours, one = _switch_in_turns(context, kept)
    again = pixels(context.run("SD1", **_small(context)))
    reason = "With several kept, a switch still copies the weights to the GPU."
    figure = Figure(
        f"switch between SD1 and SDXL, {kept} kept",
        "s",
        ours,
        one,
        "one kept" if one else "",
        SWITCH if one else None,
        reason,
    )
    is_same = mean_difference(first, again) <= SAME_PICTURE
    checks = {"the first checkpoint draws the same picture again": is_same}
    return Outcome({"checkpoints that the engine keeps loaded": kept}, checks, [figure])


def _switch_in_turns(context: Context, kept: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of a switch in each round: as the worker has set it, and with one kept."""
    rounds = context.rounds(SWITCH_ROUNDS)
    if kept == 1:
        return tuple(_switch_seconds(context) for _ in range(rounds)), ()

    def with_limit(limit: int) -> float:
        context.running.ask("options", {LIMIT: limit})
        return _switch_seconds(context)

    try:
        return in_turns(rounds, lambda: with_limit(kept), lambda: with_limit(1))
    finally:
        context.running.ask("options", {LIMIT: kept})


def _small(context: Context) -> dict[str, int]:
    size = context.size("SD1")
    return {"width": size, "height": size, "steps": 1}


def _switch_seconds(context: Context) -> float:
    """Mean seconds of a switch: a job that switches, less the same job without a switch.

    The first visit of each checkpoint is not counted: what is kept must be loaded once.
    """
    for family in FAMILIES:
        context.run(family, **_small(context))
    seconds = 0.0
    for family in FAMILIES:
        switching, staying = (context.run(family, **_small(context)).seconds for _ in range(2))
        seconds += switching - staying
    return max(seconds / len(FAMILIES), LEAST)


def _run_together(context: Context) -> list[Job]:
    """Queue several jobs at once; returns them when the last one has ended."""
    submit = functools.partial(context.submit, steps=BACKLOG_STEPS)
    jobs = [submit(seed=seed) for seed in range(BACKLOG_JOBS)]
    try:
        for job in jobs:
            context.finish(job, context.running)
    except BaseException:
        for job in jobs:
            context.plane.cancel(job)
        raise
    for job in jobs:
        context.succeed(job)
    return sorted(jobs, key=lambda job: job.ended)


def _idle_seconds(jobs: list[Job]) -> float:
    """Mean time in which the engine has no request between two jobs.

    From one result to the next one passes this time and that in which the engine works for the
    second job only.
    """
    return statistics.mean(
        later.ended - earlier.ended - float(later.output["timings"]["gpu_seconds"])
        for earlier, later in itertools.pairwise(jobs)
    )


def _parts(job: Job) -> str:
    """Where the time of a job goes, as the reason of a missed goal."""
    timings = job.output["timings"]
    parts = ", ".join(f"{name} {seconds:g}" for name, seconds in timings.items())
    return f"Seconds of the last job's parts, by the worker: {parts}."
