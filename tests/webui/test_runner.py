"""When a running request counts as nearly done, on a clock of the test's own."""

import asyncio
import math
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from worker.errors import ConnectionLost, EngineFault, JobTimeout
from worker.stopwatch import Stopwatch
from worker.webui import runner
from worker.webui.runner import Runner
from worker.webui.timing import EngineTiming

STEPS = 20


class Drawing:
    """A request of so many seconds; `eta` makes the engine's estimate from the true one."""

    def __init__(self, monkeypatch, seconds, eta):
        self.seconds, self.eta, self.now, self.looks = seconds, eta, 0.0, 0

        async def sleep(seconds):
            self.now += seconds
            await asyncio.sleep(0)

        # Of this module only: servers of other tests sleep in the threads of this process.
        own = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
        monkeypatch.setattr(runner, "asyncio", own)
        monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: self.now))

    def progress(self):
        self.looks += 1
        step = min(int(STEPS * self.now / self.seconds), STEPS - 1)
        state = {"job": "x" if self.now < self.seconds else "", "job_no": 0, "job_count": 1}
        state |= {"sampling_step": step, "sampling_steps": STEPS}
        return {"state": state, "eta_relative": self.eta(self.seconds - self.now)}


ESTIMATES = {
    "right": lambda left: left,
    "none": lambda _: 0.0,
    "negative": lambda _: -50.0,
    "huge": lambda _: 1e300,
    "not a number": lambda _: math.nan,
    "text": lambda _: "soon",
    "far too long": lambda left: 100 * left,
    "far too short": lambda left: left / 1000,
}


@pytest.mark.parametrize("seconds", [0.5, 3, 60, 600])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_request_is_looked_at_seldom_and_its_last_step_is_noticed(monkeypatch, seconds, estimate):
    drawing = Drawing(monkeypatch, seconds, ESTIMATES[estimate])
    looking = Runner(drawing, None, EngineTiming())._nearly_done()
    if estimate in {"not a number", "text"}:  # as from an engine that does not answer
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(looking, 0.1))
        return
    asyncio.run(looking)
    last_step = seconds * (1 - 1 / STEPS)
    assert last_step <= drawing.now <= max(seconds * 9 / 8, seconds + 0.1)
    if estimate == "right":
        assert drawing.now < seconds
        assert drawing.looks <= 60 + seconds / 20
    assert drawing.looks <= 300


class Asked:
    """An engine that does not answer a call, or not even another one."""

    def __init__(self, *, is_alive):
        self.is_over, self.restarts, self._is_alive = threading.Event(), [], is_alive
        self.refreshed = []
        self.is_proven = lambda: True
        self.give_up_on_hung = lambda: self.restarts.append("hung")

    def refresh(self, kind):
        self.is_over.wait(30)
        self.refreshed.append(kind)
        return kind

    def progress(self):
        return self._is_alive or self.is_over.wait(30)


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_call_ends_at_the_deadline_and_a_hung_engine_is_restarted(is_alive):
    engine = Asked(is_alive=is_alive)
    asking = Runner(engine, engine, EngineTiming(stop_patience=0.1))

    async def story():
        with pytest.raises(JobTimeout, match="the engine did not answer"):
            await asking.ask(engine.refresh, Stopwatch(0.05), "loras")
        with pytest.raises(JobTimeout):
            await asking.settled(Stopwatch(0.05))  # the next job never runs beside the call
        assert engine.refreshed == []
        engine.is_over.set()
        await asking.settled(Stopwatch(60))
        assert engine.refreshed == ["loras"]
        return await asking.ask(engine.refresh, Stopwatch(60), "vaes")

    assert asyncio.run(story()) == "vaes"
    assert engine.restarts == ([] if is_alive else ["hung", "hung"])


@pytest.mark.parametrize("error", [EngineFault("500"), ConnectionLost("no answer")])
def test_an_engine_that_answers_with_an_error_is_not_restarted(error):
    engine = Asked(is_alive=True)
    engine.progress = Mock(side_effect=error)

    async def story():
        with pytest.raises(JobTimeout):
            await Runner(engine, engine, EngineTiming()).ask(
                engine.refresh, Stopwatch(0.01), "vaes"
            )
        engine.is_over.set()

    asyncio.run(story())
    assert engine.restarts == ["hung"] * isinstance(error, ConnectionLost)


def test_a_folder_that_does_not_answer_retires_the_worker():
    is_over, retired = threading.Event(), []
    timing = EngineTiming(arrange_patience=0.1)
    lifecycle = SimpleNamespace(retire=retired.append)

    async def story():
        with pytest.raises(JobTimeout, match="the folders of models did not answer"):
            await Runner(None, lifecycle, timing).arrange(lambda: is_over.wait(30), Stopwatch(0))
        is_over.set()
        assert retired
        await Runner(None, lifecycle, timing).arrange(lambda: None, Stopwatch(30))

    asyncio.run(story())
    assert len(retired) == 1
