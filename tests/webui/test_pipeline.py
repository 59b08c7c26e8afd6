"""Two jobs at the engine at the same time; whole workers are in tests/stories/test_overlap.py."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import AsyncExitStack, suppress
from unittest.mock import Mock

import pytest
from fakes.engine_parts import Fake

from worker.errors import EngineFault
from worker.generation import ending
from worker.generation.payload import Expected, Payload
from worker.generation.picture_answer import PictureAnswer
from worker.service.waiting import Turns
from worker.stopwatch import Stopwatch
from worker.webui.engine import Engine
from worker.webui.pipeline import Pipeline
from worker.webui.timing import EngineTiming

SOON = 30.0


class Queue(Fake):
    """An engine that computes one request after the other, and encodes outside of its lock.

    Each job's prompt is its name. `computed` and `encoded` have an event for each name.
    """

    def __init__(self, folder):
        super().__init__(folder)
        timing = EngineTiming(
            restart_patience=0, stop_patience=2, stop_poll=0.01, end_poll=0.01, progress_every=60
        )
        self.engine_client = Engine(self, self, self, timing=timing)
        self.computed = {name: threading.Event() for name in "AB"}
        self.encoded = {name: threading.Event() for name in "AB"}
        self.stopped, self.lock = threading.Event(), threading.Lock()
        self.nearly_done, self.fails = threading.Event(), set()
        self.is_running, self.done = False, []
        self.clock = time.monotonic

    def draw(self, _route, body, _timeout):
        name = body["prompt"]
        self.asked.append(f"send {name}")
        with self.lock:
            self.stopped.clear()
            self.is_running = True
            while not (self.computed[name].wait(0.005) or self.stopped.is_set()):
                pass
            is_whole, self.is_running = not self.stopped.is_set(), False
            self.asked.append(f"computed {name}")
        self.encoded[name].wait()
        if name in self.fails:
            self.fails.remove(name)
            raise EngineFault("it cannot be encoded")
        return PictureAnswer([str(is_whole)], {}, "{}", {"sd_model_name": "default"})

    def progress(self, **_):
        steps = 10 if self.nearly_done.is_set() else 1
        state = {"job": "x" * self.is_running, "job_no": 0, "job_count": 1}
        state |= {"sampling_step": steps, "sampling_steps": 11}
        return {"state": state, "eta_relative": 0.01}

    def interrupt(self):
        self.asked.append("interrupt")
        self.stopped.set()

    async def job(self, name, turns):
        payload = Payload({"prompt": name, "override_settings": {}}, Expected(1))
        stopwatch = Stopwatch(SOON, clock=self.clock)
        async with turns.next(stopwatch) as next_job:
            answer = await self.engine_client.generate(
                payload, stopwatch, lambda _: None, next_job=next_job
            )
        self.done.append(name)
        return answer.images

    def all_done(self):
        for event in (*self.computed.values(), *self.encoded.values()):
            event.set()

    def of(self, *names):
        return [one for one in self.asked if one.split()[0] in names]


async def until(happened):
    """Wait until the engine has been asked for something."""
    for _ in range(int(SOON / 0.005)):
        if happened():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path)


def story(queue, tell, *, is_sent=True):
    """Start both jobs, and let `tell` go on when the second one may send its requests.

    With `is_sent`, when it has sent one.
    """

    async def run():
        turns = Turns()
        first = asyncio.create_task(queue.job("A", turns))
        await until(lambda: "send A" in queue.asked)
        if not is_sent:
            queue.engine_client.files_replaced({"checkpoint"})
        second = asyncio.create_task(queue.job("B", turns))
        queue.nearly_done.set()
        await until(lambda: queue.engine_client._pipeline.ending)
        if is_sent:
            await until(lambda: "send B" in queue.asked)
        try:
            await tell(first, second)
        finally:  # or the threads would never end
            queue.all_done()

    asyncio.run(asyncio.wait_for(run(), SOON))


def test_the_next_job_is_sent_when_this_one_is_nearly_done(queue):
    async def tell(first, second):
        assert queue.of("send", "computed") == ["send A", "send B"]
        queue.all_done()
        assert await asyncio.gather(first, second) == [["True"], ["True"]]
        assert queue.of("interrupt") == []

    story(queue, tell)


def test_a_picture_counts_only_when_the_job_before_has_ended_well(queue):
    async def tell(first, second):
        for event in (*queue.computed.values(), queue.encoded["B"]):
            event.set()
        await until(lambda: "computed B" in queue.asked)
        assert not second.done()
        queue.fails.add("A")
        queue.encoded["A"].set()
        with pytest.raises(EngineFault):
            await first
        assert await second == ["True"]
        assert queue.of("send") == ["send A", "send B", "send B"]

    story(queue, tell)


def test_a_cancelled_job_that_seemed_nearly_done_is_stopped_and_the_next_one_sent_again(queue):
    """An extension may go on after the last step that the engine shows."""

    async def tell(first, second):
        for event in queue.encoded.values():
            event.set()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert "interrupt" in queue.asked
        queue.computed["B"].set()
        assert await second == ["True"]
        assert queue.of("send")[:3] == ["send A", "send B", "send B"]
        assert queue.of("request_restart") == []

    story(queue, tell)


def test_a_job_that_is_cancelled_while_it_waits_in_the_engine_stops_only_itself(queue):
    async def tell(first, second):
        second.cancel()
        await asyncio.sleep(0.1)  # it could interrupt the first job meanwhile
        assert queue.of("interrupt") == []
        queue.computed["A"].set()
        await asyncio.sleep(0.1)
        assert queue.of("interrupt") == []  # the first job is not answered yet
        queue.encoded["A"].set()
        queue.encoded["B"].set()
        assert await first == ["True"]
        with pytest.raises(asyncio.CancelledError):
            await second
        assert queue.asked[-1] in {"computed B", "interrupt"}

    story(queue, tell)


def test_a_job_that_is_cancelled_when_its_request_begins_is_stopped(queue):
    async def tell(first, second):
        queue.computed["A"].set()
        await until(lambda: "computed A" in queue.asked)  # the second one's is computed now
        second.cancel()
        queue.encoded["A"].set()
        queue.encoded["B"].set()
        assert await first == ["True"]
        with pytest.raises(asyncio.CancelledError):
            await second
        computed, *then = queue.of("computed", "interrupt")
        assert (computed, then[0]) == ("computed A", "interrupt")
        assert "computed B" in then

    story(queue, tell)


def test_a_restart_waits_until_the_pictures_of_the_job_before_are_there(queue):
    async def tell(first, second):
        queue.computed["A"].set()
        await asyncio.sleep(0.1)  # the second job could restart the engine meanwhile
        assert queue.of("request_restart") == []
        queue.all_done()
        assert await asyncio.gather(first, second) == [["True"], ["True"]]
        assert queue.of("send", "request_restart") == ["send A", "request_restart", "send B"]

    story(queue, tell, is_sent=False)


def test_the_time_of_a_job_does_not_run_out_while_the_one_before_is_encoded(queue, clock):
    async def tell(first, second):
        queue.computed["A"].set()
        await until(lambda: "computed A" in queue.asked)
        clock.now += 10 * SOON
        queue.encoded["A"].set()
        assert await first == ["True"]
        await asyncio.sleep(0.1)  # the second job could give up meanwhile
        queue.all_done()
        assert await second == ["True"]

    queue.clock = clock
    story(queue, tell)


@pytest.fixture
def clock():
    """Called, it returns `now`, which the test moves on."""
    clock = Mock(now=0.0)
    clock.side_effect = lambda: clock.now
    return clock


@pytest.mark.parametrize("steps", range(8))  # of the event loop, until the first job fails
def test_a_job_that_fails_while_the_next_one_gets_the_engine_repairs_it_first(clock, steps):
    """And the time counts only for the first one."""

    async def run():
        pipeline = Pipeline()
        failing, waiting = Stopwatch(SOON, clock=clock), Stopwatch(SOON, clock=clock)

        async def second():
            with waiting.phase("generate"):
                async with pipeline.slot(waiting) as slot:
                    await slot.before
                    await slot.alone()
                    done.append("second")
                    clock.now += 3

        with failing.phase("generate"):
            async with pipeline.slot(failing) as slot:
                slot.pass_on()
                task = asyncio.create_task(second())
                for _ in range(steps):
                    await asyncio.sleep(0)
                await slot.alone()
                done.append("first")
                clock.now += 5
        await task
        return [one.engine_seconds() for one in (failing, waiting)]

    done = []
    seconds = asyncio.run(run())
    assert done == ["first", "second"]
    assert seconds == [5, 3]


async def overlapping(count, clock):
    """Jobs of which each one takes 2 s after the next one has been sent; what is left of them."""
    pipeline, stopwatches, slots = Pipeline(), [], []
    async with AsyncExitStack() as before:
        for _ in range(count):
            async with AsyncExitStack() as now:
                stopwatch = Stopwatch(SOON, clock=clock)
                now.enter_context(stopwatch.phase("generate"))
                slot = await now.enter_async_context(pipeline.slot(stopwatch))
                clock.now += 2
                await before.aclose()
                await asyncio.sleep(0)
                clock.now += 3
                slot.pass_on()
                stopwatches.append(stopwatch)
                slots.append(weakref.ref(slot))
                before = now.pop_all()  # noqa: PLW2901 - ends after the next one has begun
        await before.aclose()
    return pipeline, stopwatches, slots


def test_overlapping_jobs_share_the_time_of_the_engine_and_do_not_keep_each_other_in_memory(clock):
    pipeline, stopwatches, slots = asyncio.run(overlapping(4, clock))

    assert [stopwatch.engine_seconds() for stopwatch in stopwatches] == [7, 5, 5, 3]
    assert sum(stopwatch.engine_seconds() for stopwatch in stopwatches) == clock.now
    gc.collect()
    assert [slot() for slot in slots if slot()] == [pipeline.ending]


@pytest.mark.parametrize(
    ("state", "is_nearly_done"),
    [
        ((0, -1, 0, 0), False),  # idle, or it loads a checkpoint
        ((0, 1, 0, 20), False),
        ((0, 1, 18, 20), False),
        ((0, 1, 19, 20), True),  # the last step that A1111 shows
        ((1, 1, 0, 20), True),  # decoded
        ((0, 2, 19, 20), False),  # another picture, or the second pass, follows
        ((1, 2, 19, 20), True),
        ((0, 1, 0, 1), False),  # the request before may have had one step
    ],
)
def test_the_end_of_a_request_is_read_from_its_progress(state, is_nearly_done):
    names = ("job_no", "job_count", "sampling_step", "sampling_steps")
    answer = {"state": dict(zip(names, state, strict=True)) | {"job": "a"}, "eta_relative": 1.0}
    assert ending.seen(answer).is_nearly_done is is_nearly_done
