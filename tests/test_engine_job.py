"""The engine as jobs use it, beside a real process: what comes while it boots or stops."""

import asyncio
import contextlib
import threading

import pytest
from fakes.a1111.process import running_a1111, write_safetensors

from worker.errors import JobTimeout
from worker.generation.payload import Expected, Payload
from worker.stopwatch import Stopwatch
from worker.webui.client import WebUI
from worker.webui.engine import Engine
from worker.webui.readiness import Readiness
from worker.webui.supervisor import Supervisor
from worker.webui.timing import EngineTiming

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "override_settings": {}}
SLOW_BOOT = {"fault": "slow_boot", "seconds": 1}


@pytest.fixture
def start(tmp_path):
    """The fake, and the worker's side of an engine that somebody else started."""
    write_safetensors(tmp_path / "models/Stable-diffusion/first.safetensors")

    def start(**options):
        a1111 = closing.enter_context(running_a1111(tmp_path, **options))
        webui, supervisor = WebUI(a1111.url), Supervisor(None, pid=None)
        where, timing = ("127.0.0.1", a1111.port), EngineTiming(quiet=0.0)
        return a1111, Engine(webui, supervisor, Readiness(webui, supervisor, where, timing=timing))

    with contextlib.ExitStack() as closing:
        yield start


def generate(engine, timeout=30.0):
    payload = Payload(SMALL, Expected(images=1))
    return engine.generate(payload, Stopwatch(timeout), lambda _report: None)


def test_a_model_that_came_while_the_engine_booted_is_listed_before_the_first_job(start):
    """It may have come after the engine had listed its folders."""
    a1111, engine = start(faults=(SLOW_BOOT,), wait=False)
    threading.Timer(0.5, engine.models_changed).start()
    engine.boot(30)
    for refreshes in (0, 1, 1):
        asked = [one["path"] for one in a1111.log()]
        assert len([path for path in asked if path.endswith("refresh-checkpoints")]) == refreshes
        asyncio.run(generate(engine))


@pytest.mark.parametrize("cancelled_after", [0.1, 0.5, 0.55, 0.7])
def test_a_job_that_is_cancelled_leaves_an_idle_engine_also_at_its_deadline(start, cancelled_after):
    """RunPod's own limit is often the job's: both come in one moment."""
    a1111, engine = start()
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
