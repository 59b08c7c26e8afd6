import asyncio

import pytest

from worker.service.counters import Counters
from worker.service.progress import JobProgress
from worker.service.report import JobCounts, RunningJob


def test_jobs_are_counted_by_how_they_ended_and_listed_while_they_run():
    async def story():
        counters, progress = Counters(), JobProgress()
        progress.report({"phase": "load"})
        with counters.running("job-1", progress):
            running = [counters.health({}, asked_by=one).jobs.running for one in ("job-0", "job-1")]
        counters.end({"images": []})
        counters.end({"error": "OUT_OF_MEMORY: ...", "code": "OUT_OF_MEMORY"})
        with pytest.raises(asyncio.CancelledError), counters.running("job-2", progress):
            raise asyncio.CancelledError
        return running, counters.health({"total": 1.5})

    running, health = asyncio.run(story())
    assert running == [[RunningJob(id="job-1", phase="load")], []]
    failures = {"OUT_OF_MEMORY": 1}
    assert health.jobs == JobCounts(
        completed=1, failed=1, cancelled=1, running=[], failures=failures
    )
    assert (health.startup, health.uptime_seconds >= 0) == ({"total": 1.5}, True)
