"""When a running request counts as nearly done, on a clock of the test's own."""

import asyncio
import math
import threading
from types import SimpleNamespace

import pytest

from worker.errors import JobTimeout
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
        self.is_proven = lambda: True
        self.give_up_on_hung = lambda: self.restarts.append("hung")

    def refresh(self, kind):
        self.is_over.wait(30)
        return kind

    def progress(self):
        return self._is_alive or self.is_over.wait(30)


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_call_ends_at_the_deadline_and_a_hung_engine_is_restarted(is_alive):
    engine = Asked(is_alive=is_alive)
    asking = Runner(engine, engine, EngineTiming(stop_patience=0.1))

    async def story():
        with pytest.raises(JobTimeout):
            await asking.ask(engine.refresh, Stopwatch(0.05), "loras")
        engine.is_over.set()
        return await asking.ask(engine.refresh, Stopwatch(60), "loras")

    assert asyncio.run(story()) == "loras"
    assert engine.restarts == ([] if is_alive else ["hung"])
