"""The engine as jobs use it, beside a real process: what comes while it boots or stops."""

import asyncio
import threading

import pytest
from fakes.a1111.process import running_a1111, write_safetensors

from worker.errors import JobTimeout
from worker.stopwatch import Stopwatch
from worker.webui.client import WebUI
from worker.webui.engine import Engine
from worker.webui.payload import Expected, Payload
from worker.webui.readiness import Readiness
from worker.webui.supervisor import Supervisor
from worker.webui.timing import EngineTiming

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "override_settings": {}}


@pytest.fixture
def folder(tmp_path):
    write_safetensors(tmp_path / "models/Stable-diffusion/first.safetensors")
    return tmp_path


def build(a1111):
    """The worker's side of an engine that somebody else started."""
    webui, supervisor = WebUI(a1111.url), Supervisor(None, pid=None)
    readiness = Readiness(
        webui, supervisor, ("127.0.0.1", a1111.port), timing=EngineTiming(quiet=0.0)
    )
    return Engine(webui, supervisor, readiness)


def generate(engine, timeout=30.0, **body):
    payload = Payload(SMALL | body, Expected(images=1))
    return engine.generate(payload, Stopwatch(timeout), lambda _report: None)


def asked(a1111, path):
    return [one for one in a1111.log() if one["path"].endswith(path)]


def test_a_model_that_came_while_the_engine_booted_is_listed_before_the_first_job(folder):
    """It may have come after the engine had listed its folders."""
    with running_a1111(folder, faults=({"fault": "slow_boot", "seconds": 1},), wait=False) as a1111:
        engine = build(a1111)
        threading.Timer(0.5, engine.models_changed).start()
        engine.boot(30)
        assert not asked(a1111, "refresh-checkpoints")

        asyncio.run(generate(engine))
        assert len(asked(a1111, "refresh-checkpoints")) == 1
        asyncio.run(generate(engine))
        assert len(asked(a1111, "refresh-checkpoints")) == 1


@pytest.mark.parametrize("cancelled_after", [0.1, 0.5, 0.55, 0.7])
def test_a_job_that_is_cancelled_leaves_an_idle_engine_also_at_its_deadline(
    folder, cancelled_after
):
    """RunPod's own limit is often the job's: both come in one moment."""
    with running_a1111(folder) as a1111:
        engine = build(a1111)
        engine.boot(30)
        a1111.fault("hang", seconds=1.5)  # as while it loads a model: it hears no interrupt

        async def story():
            job = asyncio.create_task(generate(engine, timeout=0.5))
            await asyncio.sleep(cancelled_after)
            job.cancel()
            with pytest.raises((asyncio.CancelledError, JobTimeout)):
                await job
            return await asyncio.to_thread(WebUI(a1111.url).is_idle)

        assert asyncio.run(story())
