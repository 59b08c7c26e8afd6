import asyncio
import threading
from contextlib import nullcontext

import pytest

from worker.errors import JobTimeout
from worker.service import threads
from worker.service.threads import Threads
from worker.stopwatch import Stopwatch


def test_forty_slow_uploads_leave_a_thread_for_the_engine():
    """Python's own limit is 32 threads at most."""
    is_over = threading.Event()

    async def story():
        threads.use_more()
        uploads = [asyncio.create_task(asyncio.to_thread(is_over.wait, 30)) for _ in range(40)]
        called = await asyncio.wait_for(asyncio.to_thread(lambda: not is_over.is_set()), 30)
        is_over.set()
        await asyncio.wait(uploads)
        return called

    assert asyncio.run(story())


@pytest.mark.parametrize("text", ["can't start new thread", "another fault"])
def test_the_result_counts_also_if_no_thread_can_wait_for_the_others(monkeypatch, text):
    def fail(_loop):
        raise RuntimeError(text)

    async def main(text):
        if text:
            raise RuntimeError(text)
        return 75

    with pytest.raises(RuntimeError):
        threads.run_loop(main(text))
    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", fail)
    with pytest.raises(RuntimeError) if text == "another fault" else nullcontext():
        assert threads.run_loop(main("")) == 75


def test_work_returns_its_result_or_its_error():
    async def story():
        with pytest.raises(ZeroDivisionError):
            await Threads().run(Stopwatch(30), lambda: 1 // 0)
        return await Threads().run(Stopwatch(30), divmod, 7, 2)

    assert asyncio.run(story()) == (3, 1)


@pytest.mark.parametrize("end", ["late", "cancelled"])
@pytest.mark.parametrize("way", ["run", "run_or_stop"])
def test_a_worker_whose_threads_outlive_their_jobs_is_hanging_until_they_end(way, end):
    """As those that read a volume which does not answer."""
    is_over, now = threading.Event(), [0.0]

    def read(*_stop):
        is_over.wait(30)
        raise OSError("the volume has come back")

    async def one(started):
        waiting = asyncio.create_task(getattr(started, way)(Stopwatch(0.05), read))
        if end == "cancelled":
            await asyncio.sleep(0)
            waiting.cancel()
        await asyncio.wait({waiting})
        return waiting

    async def story():
        started = Threads(lambda: now[0])
        for number in range(4):
            waited = await one(started)
            assert waited.cancelled() == (end == "cancelled")
            now[0] += 179 if number == 3 else 1
            assert not started.are_hanging()
        if end == "late":
            assert waited.result() is None if way == "run_or_stop" else waited.exception().code
        now[0] += 1
        assert started.are_hanging()
        is_over.set()
        while started.are_hanging():  # noqa: ASYNC110 - only the end of the threads says it
            await asyncio.sleep(0.01)

    asyncio.run(story())


def test_nothing_is_started_after_the_deadline():
    """Inputs of a batch that wait for their turn would fill all threads."""
    done = []

    async def story():
        late, started = Stopwatch(0.0), Threads()
        with pytest.raises(JobTimeout):
            await started.run(late, done.append, "run")
        assert await started.run_or_stop(late, done.append) is None

    asyncio.run(story())
    assert done == []


def test_the_error_says_what_could_not_be_read():
    with pytest.raises(JobTimeout, match=r"files of models and templates .* within 0\.01 s"):
        asyncio.run(Threads().run(Stopwatch(0.01), threading.Event().wait, 0.3))
