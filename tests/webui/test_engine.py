"""The engine's state across threads and jobs; whole workers are in tests/stories/test_job.py."""

import asyncio
import threading
from unittest.mock import Mock

import pytest

from worker.errors import ConnectionLost, EnginePoisoned, RouteMissing, WrongVae
from worker.stopwatch import Stopwatch
from worker.webui.catalog import Catalog
from worker.webui.client import Txt2ImgAnswer
from worker.webui.engine import Engine
from worker.webui.payload import Expected, Payload
from worker.webui.readiness import Ready
from worker.webui.supervisor import EngineProcess
from worker.webui.timing import EngineTiming


class Fake:
    """The WebUI, start.sh and readiness in one; notes what is asked, or does what `on` has."""

    can_restart = True

    def __init__(self):
        self.process, self.asked, self.on = EngineProcess("running", pid=1), [], {}
        timing = EngineTiming(restart_patience=0, route_wait=0)
        self.engine_client = Engine(self, self, self, timing=timing)

    def engine(self):
        return self.process

    def __getattr__(self, name):
        def ask(*_):
            self.asked.append(name)
            self.on.pop(name, lambda: None)()
            return {
                "txt2img": Txt2ImgAnswer(["x"], {}, "{}", {}),
                "wait": Ready(Catalog({}, {}), self.process, 0.0),
                "is_idle": True,
            }.get(name, [])

        return ask

    async def generate(self):
        payload = Payload({"override_settings": {}}, Expected(1))
        await self.engine_client.generate(payload, Stopwatch(60), lambda _: None)

    def run(self, jobs=1):
        """What the jobs ask for; not the models that are listed after a refresh."""
        self.asked.clear()
        for _ in range(jobs):
            asyncio.run(self.generate())
        return [name for name in self.asked if name not in {"sd_models", "loras"}]


@pytest.fixture
def fake():
    return Fake()


def test_an_engine_makes_its_first_picture_once(fake):
    assert fake.run(jobs=2) == ["wait", "txt2img", "txt2img"]
    assert fake.engine_client.health()["restarts"] == 0
    fake.process = EngineProcess("running", pid=2)
    assert fake.run() == ["wait", "txt2img"]
    assert fake.engine_client.health()["restarts"] == 1


def test_files_that_come_while_the_engine_reads_its_folders_are_not_lost(fake):
    fake.engine_client.models_changed()
    fake.on["refresh"] = fake.engine_client.models_changed
    assert fake.run(jobs=3) == ["wait", "refresh", "txt2img", "refresh", "txt2img", "txt2img"]


def test_the_refresh_of_a_cancelled_job_is_repeated(fake):
    started, ended = threading.Event(), threading.Event()

    def refresh():
        started.set()
        ended.wait(60)

    async def cancelled():
        job = asyncio.create_task(fake.generate())
        await asyncio.to_thread(started.wait, 60)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        ended.set()

    fake.engine_client.models_changed()
    fake.on["refresh"] = refresh
    asyncio.run(cancelled())
    assert fake.run(jobs=2) == ["refresh", "txt2img", "txt2img"]


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (EnginePoisoned("x"), ["request_restart", "wait"]),  # even if start.sh does not end it
        (RouteMissing("x"), ["wait"]),
        (ConnectionLost("x"), ["is_idle"]),
        (WrongVae("x"), ["refresh", "txt2img"]),  # with another prompt
    ],
)
def test_the_engine_is_made_ready_before_a_failed_job_is_sent_again(fake, error, calls):
    fake.run()
    fake.on["txt2img"] = Mock(side_effect=error)
    assert fake.run() == ["txt2img", *calls, "txt2img"]
    assert fake.run() == ["txt2img"]
