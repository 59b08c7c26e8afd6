import asyncio
import weakref
from contextlib import asynccontextmanager

import pytest

from worker.service.progress import JobProgress, ProgressTiming
from worker.webui.client import of_generation


def test_the_progress_of_the_engine_becomes_a_report():
    def report(step, number, count, progress, eta):
        job = {"sampling_step": step, "sampling_steps": 20, "job_no": number, "job_count": count}
        return of_generation({"progress": progress, "eta_relative": eta, "state": job})

    common = {"phase": "generate", "steps": 20}
    one = {"step": 5, "percent": 26.0, "eta_seconds": 3.2, "message": "step 5 of 20"}
    batch = {"step": 0, "percent": 25.0, "eta_seconds": 0.0}
    batch |= {"message": "step 0 of 20, batch 2 of 4"}
    assert report(0, 0, 1, 0.0, 0.0) == {"phase": "load"}
    assert report(5, 0, 1, 0.26, 3.216) == common | one
    assert report(0, 1, 4, 0.25, -1) == common | batch


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

    @asynccontextmanager
    async def first_report(self, **timing):
        """The progress of a job whose first report is being posted."""
        async with JobProgress(self.post, ProgressTiming(**({"every": 0.0} | timing))) as progress:
            await asyncio.to_thread(progress.report, {"n": 1})  # any thread may report
            await self.wait_until(lambda: self.posting or self.reports)
            yield progress


def test_one_report_is_posted_at_a_time_and_then_only_the_newest():
    async def story():
        platform = Platform(accept=False)
        async with platform.first_report() as progress:
            for number in range(2, 50):
                progress.report({"n": number})
            platform.accept.set()
            await platform.wait_until(lambda: len(platform.reports) == 2)
        return platform

    platform = asyncio.run(story())
    assert platform.reports == [{"n": 1}, {"n": 49}]
    assert platform.most_at_once == 1


@pytest.mark.parametrize(
    ("accept", "timing", "posted"),
    [
        (True, {"every": 60}, [{"n": 1}]),  # the next report waits for the interval
        (False, {"patience": 0.01}, []),  # a report that is not accepted is given up
    ],
)
def test_no_report_is_posted_too_early_or_for_too_long(accept, timing, posted):
    async def story():
        platform = Platform(accept)
        async with platform.first_report(**timing) as progress:
            if accept:
                await platform.wait_until(lambda: platform.reports)
                progress.report({"n": 2})
                await asyncio.sleep(0.01)
        return platform.reports

    assert asyncio.run(story()) == posted


@pytest.mark.parametrize("end", ["returns", "cancelled"])
def test_the_end_of_a_job_waits_for_the_report_that_is_being_posted(end):
    async def story():
        platform = Platform(accept=False)

        async def job():
            async with platform.first_report() as progress:
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


def test_a_report_need_not_be_posted_and_may_come_after_the_event_loop():
    async def story():
        async with JobProgress() as unposted:
            unposted.entered("prepare")
        return unposted

    unposted = asyncio.run(story())
    assert unposted.latest == {"phase": "resolve"}
    unposted.report({"phase": "late"})  # its loop is closed


def test_what_outlives_the_job_keeps_nothing_of_it():
    async def use():
        platform = Platform()
        alive = weakref.ref(platform)
        async with JobProgress(platform.post) as progress:
            progress.report({"phase": "load"})
            await platform.changed.wait()
        del platform
        assert alive() is None
        progress.report({"phase": "upload"})

    asyncio.run(use())
