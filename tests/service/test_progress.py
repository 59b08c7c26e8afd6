"""Progress reports: in order, not too often, and none after the end."""

import asyncio

import pytest

from worker.service.progress import JobProgress, ProgressTiming
from worker.webui.client import of_generation

AT_ONCE = ProgressTiming(every=0.0)


def state(step=0, number=0, count=1, progress=0.0, eta=0.0):
    """An answer of A1111's route `progress`."""
    job = {"sampling_step": step, "sampling_steps": 20, "job_no": number, "job_count": count}
    return {"progress": progress, "eta_relative": eta, "state": job}


def generating(step, percent, eta, message):
    numbers = {"step": step, "steps": 20, "percent": percent, "eta_seconds": eta}
    return {"phase": "generate", **numbers, "message": message}


@pytest.mark.parametrize(
    ("answer", "report"),
    [
        (state(), {"phase": "load"}),
        (state(5, progress=0.26, eta=3.216), generating(5, 26.0, 3.2, "step 5 of 20")),
        (state(0, 1, 4, 0.25, -1), generating(0, 25.0, 0.0, "step 0 of 20, batch 2 of 4")),
    ],
    ids=["before the first step", "one picture", "the second of four"],
)
def test_the_progress_of_the_engine_becomes_a_report(answer, report):
    assert of_generation(answer) == report


class Platform:
    """Accepts a report when `accept` is set, and counts those that are posted at the same time."""

    def __init__(self, accept=True):
        self.reports = []
        self.posting = self.most_at_once = 0
        self.changed, self.accept = asyncio.Event(), asyncio.Event()
        if accept:
            self.accept.set()

    async def post(self, report):
        self.posting += 1
        self.most_at_once = max(self.most_at_once, self.posting)
        self.changed.set()
        await self.accept.wait()
        self.reports.append(report)
        self.posting -= 1
        self.changed.set()

    async def wait_until(self, happened):
        while not happened():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)


def test_one_report_is_posted_at_a_time_and_then_only_the_newest():
    async def story():
        platform = Platform(accept=False)
        async with JobProgress(platform.post, AT_ONCE) as progress:
            for number in range(50):
                progress.report({"n": number})
                if number == 0:
                    await platform.wait_until(lambda: platform.posting)
            platform.accept.set()
            await platform.wait_until(lambda: len(platform.reports) == 2)
        return platform

    platform = asyncio.run(story())
    assert platform.reports == [{"n": 0}, {"n": 49}]
    assert platform.most_at_once == 1


def test_the_next_report_waits_for_the_interval():
    async def story():
        platform = Platform()
        async with JobProgress(platform.post, ProgressTiming(every=60)) as progress:
            progress.report({"n": 1})
            await platform.wait_until(lambda: platform.reports)
            progress.report({"n": 2})
            await asyncio.sleep(0.01)
        return platform.reports

    assert asyncio.run(story()) == [{"n": 1}]


@pytest.mark.parametrize("end", ["returns", "cancelled"])
def test_the_end_of_a_job_waits_for_the_report_that_is_being_posted(end):
    async def story():
        platform = Platform(accept=False)

        async def job():
            async with JobProgress(platform.post, AT_ONCE) as progress:
                progress.report({"n": 1})
                await platform.wait_until(lambda: platform.posting)
                if end == "cancelled":
                    running.cancel()
                    await asyncio.sleep(60)
            progress.report({"n": 2})  # too late

        running = asyncio.create_task(job())
        await platform.wait_until(lambda: platform.posting)
        await asyncio.sleep(0.01)
        assert not running.done()
        platform.accept.set()
        await asyncio.wait({running}, timeout=30)
        await asyncio.sleep(0.01)
        return running.cancelled(), platform.reports

    assert asyncio.run(story()) == (end == "cancelled", [{"n": 1}])


def test_a_report_that_is_not_accepted_is_given_up():
    async def story():
        platform = Platform(accept=False)
        async with JobProgress(platform.post, ProgressTiming(every=0.0, patience=0.01)) as progress:
            progress.report({"n": 1})
            await platform.wait_until(lambda: platform.posting)
        return platform.reports

    assert asyncio.run(story()) == []


def test_other_threads_may_report_and_nothing_need_be_posted():
    async def story():
        platform = Platform()
        async with JobProgress(platform.post, AT_ONCE) as progress:
            await asyncio.to_thread(progress.report, {"n": 1})
            await platform.wait_until(lambda: platform.reports)
        async with JobProgress() as unposted:
            unposted.enter("prepare")
        return platform.reports, unposted

    reports, unposted = asyncio.run(story())
    assert reports == [{"n": 1}]
    assert unposted.latest == {"phase": "prepare"}
    unposted.report({"phase": "late"})  # its loop is closed
