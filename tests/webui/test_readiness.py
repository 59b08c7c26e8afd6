import logging
import socket

import pytest
from fakes.a1111.process import free_port, running_a1111, write_safetensors

from worker.errors import CacheDamaged, EngineNotReady, EnginePoisoned, NoCheckpoint, RouteMissing
from worker.webui.catalog import Catalog
from worker.webui.client import WebUI
from worker.webui.readiness import Readiness, likely_causes
from worker.webui.supervisor import EngineProcess, Supervisor

MISSING = RouteMissing("loras: the engine does not have this route.", route="loras")
POISONED = EnginePoisoned("illegal memory")


class World:
    """A fake engine, and the clock and the start.sh beside it.

    Attributes:
        now: seconds; they pass only while the readiness sleeps.
        calls: the engine's routes with the time of the request.
        later: the lines that start.sh writes at a time.
    """

    def __init__(self, folder):
        self.now, self.calls, self.later, self.folder = 0.0, [], {}, folder
        self.report("running 123")

    def report(self, line):
        (self.folder / "engine").write_text(line)

    def sleep(self, seconds):
        self.now += seconds
        for due in [due for due in self.later if self.now >= due]:
            self.report(self.later.pop(due))

    def __getattr__(self, route):
        def call(*_, **__):
            self.calls.append((route, self.now))
            if route in self.errors:
                raise self.errors[route]
            return Catalog({}, {}) if route == "catalog" else ["one", "two"]

        return call

    def readiness(self, port=None, **errors):
        """Wait for an engine that answers with these errors; with a port, it is an external one."""
        supervisor, self.errors = Supervisor(self.folder, pid=None if port else 1), errors
        time = {"clock": lambda: self.now, "sleep": self.sleep}
        return Readiness(self, supervisor, ("127.0.0.1", port), **time)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_ready_means_that_a_picture_was_made(tmp_path):
    """Also while the model loads, when the port is open and other routes answer."""
    (tmp_path / "engine").write_text("running 123")
    write_safetensors(tmp_path / "webui/models/Stable-diffusion/tiny.safetensors")
    slow = ({"fault": "slow_boot", "seconds": 0.3}, {"fault": "model_slow", "seconds": 1})
    with running_a1111(tmp_path / "webui", faults=slow, wait=False) as engine:
        webui, supervisor = WebUI(engine.url), Supervisor(tmp_path, pid=1)
        ready = Readiness(webui, supervisor, ("127.0.0.1", engine.port)).wait(60)
        posts = [request for request in engine.log() if request["path"].endswith("txt2img")]
    assert len(posts) == 1
    assert ready.seconds >= 1
    assert ready.process.pid == 123
    assert ready.catalog.sampler("Euler", None) == ("Euler", None)
    assert (tmp_path / "engine.ready").read_text() == "123\n"


def test_a_dead_engine_is_reported_at_the_next_poll(world):
    world.later[0.5] = "failed 137"
    with pytest.raises(EngineNotReady, match="not enough memory"):
        world.readiness(loras=MISSING).wait(30)
    assert world.now < 0.8


def test_an_engine_that_is_being_restarted_makes_no_first_picture(world):
    """It still answers, but not for long."""
    world.report("restarting 0")
    world.later[1.0] = "running 124"
    assert world.readiness().wait(15).process.pid == 124
    assert min(time for _, time in world.calls) >= 1.0


def test_an_external_engine_that_does_not_run_is_reported_at_the_deadline(world, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(EngineNotReady, match=r"no program listens there\. Check that it was start"):
        world.readiness(free_port()).wait(40)
    assert 40 <= world.now < 41
    assert caplog.text.count("waiting for the engine") == 2  # every 15 s


def test_an_external_engine_gets_no_request_before_its_port_was_open_for_a_while(world):
    """In UI mode A1111 dies of an earlier one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        world.readiness(server.getsockname()[1]).wait(15)
    assert world.calls[0] == ("loras", 5.0)


def test_an_engine_without_a_checkpoint_is_ready_with_a_warning(world, caplog):
    world.readiness(txt2img=NoCheckpoint("x")).wait(10)
    assert "only jobs that name one can run" in caplog.text


def test_a_fault_that_stays_is_reported_with_its_cause(world):
    for errors, kind, text in (
        ({"loras": MISSING}, CacheDamaged, "LoRA routes are missing"),
        ({"loras": MISSING, "sd_models": MISSING}, EngineNotReady, "Another program listens"),
        ({"txt2img": POISONED}, EngineNotReady, "failed 3 times: ENGINE_POISONED: illegal memory"),
    ):
        started = world.now
        with pytest.raises(kind, match=text):
            world.readiness(**errors).wait(60)
        assert "txt2img" in errors or 10 <= world.now - started < 11


def test_a_missing_route_gets_a_hint_whether_the_webui_answers(world):
    assert "lists 2 checkpoints, but not this route" in world.readiness().what_answers()
    assert "is not the WebUI's API" in world.readiness(sd_models=MISSING).what_answers()


CAUSES = {
    EngineProcess("failed", status=137): "not enough memory",
    EngineProcess("failed", status=139): "Segmentation fault",
    EngineProcess("failed", status=1): "port is in use",
    EngineProcess("failed", status=2): "WEBUI_ARGS",
    EngineProcess("failed", status=42): "Exit status 42",
    EngineProcess("running", pid=1): "raise READY_TIMEOUT",
    EngineProcess("unknown"): "make serve",
}


@pytest.mark.parametrize("process", CAUSES)
def test_the_state_of_the_process_gives_the_likely_causes(process):
    assert CAUSES[process] in likely_causes(process)
