"""The queue in this process, with a clock and timers that the test turns."""

import asyncio
import json
import weakref
from collections import Counter
from contextvars import ContextVar

import pytest

from gateway.jobs import NoSuchJob, TooManyJobs
from gateway.local.job import Limits
from gateway.local.jobs import LocalJobs
from worker.errors import WorkerEnding
from worker.service.counters import Counters
from worker.stopwatch import Stopwatch


class Clock:
    """Time that passes only by `advance`, which makes the planned calls."""

    def __init__(self):
        self.now = 0.0
        self._planned = []

    def __call__(self):
        return self.now

    def later(self, seconds, call):
        plan = Plan(self.now + seconds, call)
        self._planned.append(plan)
        return plan

    async def advance(self, seconds):
        self.now += seconds
        for plan in [plan for plan in self._planned if plan.time <= self.now]:
            self._planned.remove(plan)
            if not plan.cancelled:
                plan.call()
        await passing()


class Plan:
    def __init__(self, time, call):
        self.time, self.call, self.cancelled = time, call, False

    def cancel(self):
        self.cancelled = True


async def passing():
    for _ in range(20):
        await asyncio.sleep(0)


class Handled:
    """A handler whose jobs end when the test says so."""

    def __init__(self):
        self.inputs, self.cancelled, self.gates, self.beside = [], [], {}, []

    async def __call__(self, job):
        number = job["input"]["n"]
        self.inputs.append(number)
        self.beside.append(job.get("s3Config"))
        gate = self.gates.setdefault(number, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.shield(gate)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise

    async def end(self, number, **answer):
        self.gates[number].set_result(answer)
        await passing()


def use(work, **limits):
    """Run `work(jobs, handled, clock)` on a queue whose engine is ready."""

    async def run():
        clock, handled = Clock(), Handled()
        quick = lambda given: given.get("quick", False)  # noqa: E731
        how = {"limits": Limits(**limits), "clock": clock, "later": clock.later}
        handled.counters = counters = Counters()

        async def counted(job):
            with counters.running(job["id"], None, Stopwatch(600)) as running:
                running.answer = await handled(job)
            return running.answer

        how["aborted"] = lambda job_id, given, status, code: counters.abort(
            job_id, given["n"], status.lower(), code
        )
        jobs = LocalJobs(counted, is_quick=quick, **how)
        jobs.begin()
        await work(jobs, handled, clock)

    asyncio.run(run())


async def submit(jobs, number, **beside):
    state = await jobs.submit({"input": {"n": number}, **beside})
    await passing()
    return state.id


async def status(jobs, job_id):
    return (await jobs.state(job_id)).status


def test_jobs_run_in_their_order_and_quick_ones_beside_them():
    async def work(jobs, handled, _clock):
        ids = [await submit(jobs, number) for number in range(3)]
        await jobs.submit({"input": {"n": 9, "quick": True}})
        await passing()
        assert handled.inputs == [0, 9]
        await handled.end(9, done=True)
        for number in range(3):
            await handled.end(number, done=True)
        assert handled.inputs == [0, 9, 1, 2]
        assert [await status(jobs, one) for one in ids] == ["COMPLETED"] * 3

    use(work)


def test_followers_see_each_change_and_times_are_milliseconds():
    async def work(jobs, handled, clock):
        first, second = await submit(jobs, 1), await submit(jobs, 2)
        seen = []

        async def follow():
            seen.extend([state async for state in jobs.follow(second)])

        following = asyncio.ensure_future(follow())
        await clock.advance(2)
        await handled.end(1, done=True)
        await jobs.report({"id": second}, {"percent": 50})
        await clock.advance(3)
        await handled.end(2, done=True)
        await following
        assert [state.status for state in seen] == [
            *("IN_QUEUE", "IN_PROGRESS", "IN_PROGRESS", "COMPLETED")
        ]
        assert seen[2].output == {"percent": 50}
        assert (seen[-1].delay_ms, seen[-1].execution_ms) == (2000, 3000)
        assert (await jobs.state(first)).execution_ms == 2000

    use(work)


def test_a_follower_that_was_busy_when_the_job_ended_still_gets_its_end():
    async def work(jobs, handled, _clock):
        following = jobs.follow(await submit(jobs, 1))
        assert (await anext(following)).status == "IN_PROGRESS"
        await handled.end(1, done=True)
        assert [state.status async for state in following] == ["COMPLETED"]

    use(work)


def test_execution_timeout_counts_from_the_start_and_cancels_the_work():
    async def work(jobs, handled, clock):
        await submit(jobs, 1)
        job = await submit(jobs, 2, policy={"executionTimeout": 5000})
        await clock.advance(60)
        await handled.end(1)
        await clock.advance(4.9)
        assert await status(jobs, job) == "IN_PROGRESS"
        await clock.advance(0.1)
        state = await jobs.state(job)
        assert state.status == "TIMED_OUT"
        assert state.error.startswith("JOB_TIMEOUT: the job took longer than policy.executionTi")
        assert state.output["code"] == "JOB_TIMEOUT"
        assert handled.cancelled == [2]
        await submit(jobs, 3)
        assert handled.inputs == [1, 2, 3]

    use(work)


@pytest.mark.parametrize("is_running", [True, False])
def test_ttl_deletes_a_job_that_has_not_ended(is_running):
    async def work(jobs, handled, clock):
        if not is_running:
            await submit(jobs, 1)
        job = await submit(jobs, 2, policy={"ttl": 10_000})
        await clock.advance(10)
        with pytest.raises(NoSuchJob):
            await jobs.state(job)
        assert handled.cancelled == ([2] if is_running else [])

    use(work)


def test_ttl_and_timeout_do_not_touch_a_job_that_has_ended():
    async def work(jobs, handled, clock):
        job = await submit(jobs, 1, policy={"ttl": 10_000, "executionTimeout": 5000})
        await handled.end(1, done=True)
        await clock.advance(100)
        assert await status(jobs, job) == "COMPLETED"

    use(work)


def test_answers_are_kept_for_their_time_and_within_the_room():
    async def work(jobs, handled, clock):
        ids = []
        for number in range(4):
            ids.append(await submit(jobs, number))
            await handled.end(number, text="x" * 10_000)
            await clock.advance(1)
        jobs.answered(ids[3])
        kept = []
        for job in ids:
            try:
                kept.append(await status(jobs, job))
            except NoSuchJob:
                kept.append(None)
        assert kept == [None, None, "COMPLETED", "COMPLETED"]  # the oldest had no room
        await clock.advance(60)
        with pytest.raises(NoSuchJob):  # a waiting request has got it
            await jobs.state(ids[3])
        assert await status(jobs, ids[2]) == "COMPLETED"
        await clock.advance(1800)
        with pytest.raises(NoSuchJob, match="kept for 30 minutes"):
            await jobs.state(ids[2])

    use(work, kept_bytes=25_000)


LARGE = [{"prompt": "x" * 10_000}, {"x" * 10_000: 1}, {"list": [[]] * 160}, {"list": [1] * 280}]


@pytest.mark.parametrize("large", LARGE, ids=lambda one: str(one)[:20])
def test_what_a_failed_job_keeps_for_a_retry_counts_whatever_it_is_made_of(large):
    async def work(jobs, handled, clock):
        ids = []
        for number in range(4):
            ids.append((await jobs.submit({"input": {"n": number, **large}})).id)
            await passing()
            await handled.end(number, error="it failed")
            await clock.advance(1)
        with pytest.raises(NoSuchJob):
            await jobs.state(ids[1])
        assert [await status(jobs, one) for one in ids[2:]] == ["FAILED", "FAILED"]

    use(work, kept_bytes=25_000)


def test_a_job_that_has_ended_keeps_nothing_that_its_handler_has_set():
    """Its pictures may be megabytes, and the task keeps the variables of its context."""

    class Pictures:
        pass

    of_job, alive = ContextVar("of_job"), []

    async def work():
        async def handler(_job):
            pictures = Pictures()
            of_job.set(pictures)
            alive.append(weakref.ref(pictures))
            return {"done": True}

        jobs = LocalJobs(handler)
        jobs.begin()
        job = await submit(jobs, 1)
        assert await status(jobs, job) == "COMPLETED"
        assert [one() for one in alive] == [None]

    asyncio.run(work())


@pytest.mark.parametrize(
    ("limits", "large"),
    [({"waiting": 2}, {}), *(({"waiting_bytes": 25_000}, one) for one in LARGE)],
)
def test_a_full_queue_refuses_jobs(limits, large):
    async def work(jobs, _handled, _clock):
        job = {"input": {"n": 1, **large}}
        for _ in range(3):  # one of them runs
            await jobs.submit(job)
            await passing()
        with pytest.raises(TooManyJobs):
            await jobs.submit(job)

    use(work, **limits)


def test_an_input_that_is_deeply_nested_is_counted():
    async def work(jobs, _handled, _clock):
        deep = []
        for _ in range(100_000):
            deep = [deep]
        await jobs.submit({"input": {"n": 1, "deep": deep}})
        # Taken apart here: the interpreter's own end of so deep a list is recursive.
        while deep:
            deep = deep.pop()

    use(work)


S3_CONFIG = {"accessId": "id-of-the-key", "accessSecret": "secret-of-the-key"}


def test_the_bucket_of_a_job_reaches_the_handler_and_is_kept_only_for_a_retry():
    async def work(jobs, handled, _clock):
        ended = [await submit(jobs, number, s3Config=S3_CONFIG) for number in (1, 2)]
        await handled.end(1, error="DELIVERY_FAILED: no.")
        await handled.end(2, done=True)
        assert handled.beside == [S3_CONFIG] * 2
        for job in ended:
            assert "of-the-key" not in json.dumps((await jobs.state(job)).as_json())
        kept = [jobs._jobs[job].request.get("s3Config") for job in ended]
        assert kept == [S3_CONFIG, None]

    use(work)


def test_a_handler_that_raises_fails_its_job_and_the_queue_goes_on():
    async def work(jobs, handled, _clock):
        job = await submit(jobs, 1)
        handled.gates[1].set_exception(RuntimeError("a secret of the worker"))
        await passing()
        state = await jobs.state(job)
        assert state.status == "FAILED"
        assert state.error.startswith("INTERNAL_ERROR: ")
        assert "secret" not in str(state)
        await submit(jobs, 2)
        assert handled.inputs == [1, 2]

    use(work)


def test_a_job_that_is_retried_while_its_first_run_still_ends_gets_the_second_answer():
    async def work(jobs, handled, clock):
        job = await submit(jobs, 1, policy={"executionTimeout": 5000})
        await clock.advance(5)
        handled.gates.clear()
        await jobs.retry(job)
        await passing()
        await handled.end(1, second=True)
        assert (await jobs.state(job)).output == {"second": True}
        assert (await jobs.health())["jobs"]["retried"] == 1

    use(work)


def test_each_job_is_counted_once_however_it_ends():
    async def work(jobs, handled, clock):
        async def send(number, **policy):
            return (await jobs.submit({"input": {"n": number}, "policy": policy})).id

        await send(1, executionTimeout=5000)
        await send(2, ttl=10_000)
        cancelled, purged = [await send(number) for number in (3, 4)]
        await passing()
        await jobs.cancel(cancelled)
        assert jobs.queue() == {"waiting": 2, "oldest_seconds": 0}
        await clock.advance(6)  # 1 took too long, so 2 runs
        assert jobs.queue() == {"waiting": 1, "oldest_seconds": 6}
        await jobs.purge()
        assert (await jobs.state(purged)).status == "CANCELLED"
        await clock.advance(6)  # the ttl of 2 has ended
        for number in (5, 6, 7, 8):
            await send(number)
        await passing()
        await handled.end(5)
        await handled.end(6, error="no", code="invalid_input")
        await jobs.end(WorkerEnding("over."), 0)
        await passing()
        ended = Counter()
        for one, count in handled.counters.ended.items():
            ended[one.outcome, one.code] += count
        assert ended == {
            ("timed_out", "JOB_TIMEOUT"): 2,
            ("cancelled", ""): 2,
            ("completed", ""): 1,
            ("failed", "INVALID_INPUT"): 1,
            ("failed", "WORKER_ENDING"): 2,  # one that ran and one that waited
        }

    use(work)


def picture(number, size=1):
    return {"type": "picture", "number": number, "data": "A" * size}


async def numbers(jobs, job_id, hold=0):
    """The status and the numbers (or the steps) of the chunks of one call of /stream."""
    part = await jobs.stream(job_id, hold)
    chunks = [one["output"] for one in part.chunks]
    return part.state.status, [one.get("number", one.get("step")) for one in chunks]


def test_each_chunk_is_read_once_and_a_report_is_replaced_by_a_newer_one():
    async def work(jobs, handled, _clock):
        job = await submit(jobs, 1)
        post = jobs.stream_of({"id": job})
        for step in range(3):
            await post({"type": "progress", "step": step}, again=False)
        for number in range(20, 40):
            await post(picture(number), again=True)
        await handled.end(1, done=True)
        seen = [await numbers(jobs, job) for _ in range(3)]
        assert seen == [
            ("IN_PROGRESS", [2, *range(20, 35)]),  # npm's client reads no more of an ended job
            ("COMPLETED", [*range(35, 40)]),
            ("COMPLETED", []),
        ]
        assert not await post(picture(99), again=True)  # the job has ended
        assert jobs.stream_of({"id": "none"}) is None

    use(work)


def test_of_several_readers_each_chunk_reaches_one_and_one_that_hangs_up_takes_none():
    async def work(jobs, handled, _clock):
        job = await submit(jobs, 1)
        gone, *readers = (asyncio.ensure_future(numbers(jobs, job, 60)) for _ in range(3))
        await passing()
        gone.cancel()
        await passing()
        await jobs.stream_of({"id": job})(picture(1), again=True)
        await passing()
        assert [reader.done() for reader in readers].count(True) == 1
        await handled.end(1, done=True)
        seen = sorted([await reader for reader in readers])
        assert seen == [("COMPLETED", []), ("IN_PROGRESS", [1])]

    use(work)


def test_unread_chunks_count_as_kept_memory_and_are_forgotten_with_the_job():
    async def work(jobs, handled, _clock):
        ids = [await submit(jobs, 1), await submit(jobs, 2)]
        for number, job in enumerate(ids, 1):
            post = jobs.stream_of({"id": job})
            assert await post(picture(1, 5000), again=True)
            assert not await post(picture(2, 5000), again=True)  # no room
            await handled.end(number, done=True)
        assert await numbers(jobs, ids[1]) == ("COMPLETED", [1])
        with pytest.raises(NoSuchJob):
            await jobs.stream(ids[0], 0)

    use(work, kept_bytes=10_000)


def test_a_job_that_is_queued_again_streams_from_the_beginning():
    async def work(jobs, handled, _clock):
        job = await submit(jobs, 1)
        await jobs.stream_of({"id": job})(picture(1), again=True)
        await handled.end(1, error="no")
        handled.gates.clear()
        await jobs.retry(job)
        await passing()
        await jobs.stream_of({"id": job})(picture(2), again=True)
        await handled.end(1, done=True)
        assert await numbers(jobs, job) == ("COMPLETED", [2])

    use(work)
