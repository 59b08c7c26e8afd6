"""What became of the jobs, by their end."""

import asyncio

import pytest

from worker.service.counters import Counters
from worker.service.progress import JobProgress


def test_jobs_are_counted_by_their_end_and_shown_while_they_run():
    async def story():
        counters = Counters()
        progress = JobProgress()
        progress.tell({"phase": "load"})
        with counters.running("job-1", progress):
            while_running = counters.shown(asked_by="job-0")["jobs"]
            told_to_itself = counters.shown(asked_by="job-1")["jobs"]
        counters.end({"images": []})
        counters.end({"error": "OUT_OF_MEMORY: ...", "code": "OUT_OF_MEMORY"})
        with pytest.raises(asyncio.CancelledError), counters.running("job-2", progress):
            raise asyncio.CancelledError
        return while_running, told_to_itself, counters.shown()

    while_running, told_to_itself, shown = asyncio.run(story())
    assert while_running["running"] == [{"id": "job-1", "phase": "load"}]
    assert told_to_itself["running"] == []
    assert shown["jobs"] == {
        "completed": 1,
        "failed": 1,
        "cancelled": 1,
        "running": [],
        "failures": {"OUT_OF_MEMORY": 1},
    }
    assert shown["uptime_seconds"] >= 0
