"""How far a job is: the newest report in order, none too often, none behind the end."""

import asyncio
import threading

import pytest

from worker.service.progress import JobProgress
from worker.webui.client import of_generation


def state(step=0, steps=20, number=0, count=1, progress=0.0, eta=0.0):
    told = {"sampling_step": step, "sampling_steps": steps, "job_no": number, "job_count": count}
    return {"progress": progress, "eta_relative": eta, "state": told}


@pytest.mark.parametrize(
    ("answer", "report"),
    [
        (state(), {"phase": "load"}),
        (
            state(5, progress=0.26, eta=3.216),
            {
                "phase": "generate",
                "step": 5,
                "steps": 20,
                "percent": 26.0,
                "eta_seconds": 3.2,
                "message": "step 5 of 20",
            },
        ),
        (
            state(0, number=1, count=4, progress=0.25, eta=-1),
            {
                "phase": "generate",
                "step": 0,
                "steps": 20,
                "percent": 25.0,
                "eta_seconds": 0.0,
                "message": "step 0 of 20, batch 2 of 4",
            },
        ),
    ],
    ids=["before the first step", "one picture", "the second of four"],
)
def test_what_the_engine_says_becomes_a_report(answer, report):
    assert of_generation(answer) == report


class Platform:
    """Takes reports slowly, and knows how many were under way at once."""

    def __init__(self, delay=0.0):
        self.delay = delay
        self.reports = []
        self.arriving = self.most_at_once = 0
        self.arrived = asyncio.Event()

    async def post(self, report):
        self.arriving += 1
        self.most_at_once = max(self.most_at_once, self.arriving)
        await asyncio.sleep(self.delay)
        self.reports.append(report)
        self.arriving -= 1
        self.arrived.set()


def test_reports_never_overtake_each_other_and_the_newest_counts():
    async def story():
        platform = Platform(delay=0.02)
        async with JobProgress(platform.post, every=0.0) as progress:
            for number in range(50):
                progress.report({"n": number})
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.1)
        return platform

    platform = asyncio.run(story())
    numbers = [report["n"] for report in platform.reports]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 49
    assert platform.most_at_once == 1


def test_no_more_than_one_in_an_interval():
    async def story():
        platform = Platform()
        async with JobProgress(platform.post, every=60) as progress:
            for number in range(20):
                progress.report({"n": number})
                await asyncio.sleep(0.002)
        return platform.reports

    assert asyncio.run(story()) == [{"n": 0}]


def test_what_is_under_way_has_arrived_at_the_end_and_nothing_comes_later():
    async def story():
        platform = Platform(delay=0.1)
        async with JobProgress(platform.post, every=0.0) as progress:
            progress.report({"n": 1})
            await asyncio.sleep(0.01)
            assert platform.arriving == 1
        at_the_end = list(platform.reports)
        progress.report({"n": 2})
        await asyncio.sleep(0.2)
        return at_the_end, platform.reports

    assert asyncio.run(story()) == ([{"n": 1}], [{"n": 1}])


def test_the_end_of_a_cancelled_job_waits_for_its_report_too():
    async def story():
        platform = Platform(delay=0.05)

        async def job():
            async with JobProgress(platform.post, every=0.0) as progress:
                progress.report({"n": 1})
                await asyncio.sleep(60)

        running = asyncio.create_task(job())
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return platform.reports

    assert asyncio.run(story()) == [{"n": 1}]


def test_threads_may_tell_and_nobody_need_listen():
    async def story():
        platform = Platform()
        async with JobProgress(platform.post, every=0.0) as progress:
            thread = threading.Thread(target=progress.report, args=({"n": 1},))
            thread.start()
            await platform.arrived.wait()
            thread.join()
        async with JobProgress() as unheard:
            unheard.enter("prepare")
        return platform.reports, unheard

    reports, unheard = asyncio.run(story())
    assert reports == [{"n": 1}]
    assert unheard.latest == {"phase": "prepare"}
    unheard.report({"phase": "late"})  # its loop is closed
