import asyncio
from contextlib import suppress

import pytest

from worker.service.counters import BOUNDS, Counters, Histogram
from worker.service.progress import JobProgress
from worker.service.report import PhaseSeconds, RunningJob
from worker.stopwatch import Stopwatch


async def run(counters, answer, job_id="job", task="txt2img"):
    stopwatch = Stopwatch(60)
    with counters.running(job_id, JobProgress(), stopwatch) as running:
        counters.runs(job_id, task)
        counters.runs(f"{job_id}-1", "png_info")  # a part of a batch
        if answer is None:
            raise asyncio.CancelledError
        running.answer = answer


def test_jobs_are_counted_by_how_they_ended_and_listed_while_they_run():
    async def story():
        counters, progress = Counters(), JobProgress()
        progress.report({"phase": "load"})
        with counters.running("job-1", progress, Stopwatch(60)) as one:
            running = [counters.jobs(asked_by=asked).running for asked in ("job-0", "job-1")]
            one.answer = {"images": []}
        await run(counters, {"error": "x", "code": "OUT_OF_MEMORY"})
        await run(counters, {"error": {}, "code": "invalid_input"}, task="openai")
        with pytest.raises(asyncio.CancelledError):
            await run(counters, None)
        return running, counters.jobs()

    running, jobs = asyncio.run(story())
    assert running == [[RunningJob(id="job-1", phase="load")], []]
    assert jobs.model_dump(exclude={"running"}) == {
        "completed": 1,
        "failed": 2,
        "cancelled": 1,
        "timed_out": 0,
        "failures": {"OUT_OF_MEMORY": 1, "INVALID_INPUT": 1},
        "tasks": {"unknown": 1, "txt2img": 2, "openai": 1},
    }


@pytest.mark.parametrize("answer", [{"images": []}, {"error": "x", "code": "X"}, None])
def test_a_job_that_was_ended_from_outside_is_counted_as_its_caller_saw_it(answer):
    counters = Counters()

    async def story():
        with counters.running("job", JobProgress(), Stopwatch(60)) as running:
            counters.abort("job", "ignored", "timed_out", "JOB_TIMEOUT")
            running.answer = answer

    asyncio.run(story())
    counters.abort("job", "upscale", "cancelled")  # the same id, while it waits once more
    assert dict(counters.ended) == {
        ("unknown", "timed_out", "JOB_TIMEOUT"): 1,
        ("upscale", "cancelled", ""): 1,
    }


def test_the_phases_and_the_seconds_on_the_engine_of_every_job_are_added():
    counters, times = Counters(), iter([0, 0, 2, 5, 6, 6])
    stopwatch = Stopwatch(60, clock=lambda: next(times, 6))
    with suppress(ValueError), counters.running("job", None, stopwatch):
        with stopwatch.phase("queue"):
            pass
        with stopwatch.phase("generate"):
            raise ValueError
    assert counters.gpu_seconds == 1
    assert counters.phase_seconds() == {
        name: PhaseSeconds(count=1, seconds=seconds)
        for name, seconds in (("queue", 2), ("generate", 1), ("total", 6))
    }


def test_a_histogram_has_each_value_in_the_first_bucket_that_holds_it():
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], 0.011, BOUNDS[-1], BOUNDS[-1] + 1):
        histogram.observe(seconds)
    cumulative = dict(histogram.cumulative())
    assert [*cumulative][-1] == "+Inf"
    assert (cumulative["0.01"], cumulative["0.03"]) == (2, 3)
    assert (cumulative["600.0"], cumulative["+Inf"], histogram.count) == (4, 5, 5)
