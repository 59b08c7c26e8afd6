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


class Clock:
    """Time that passes only in `sleep`; `later`: what happens meanwhile, `calls`: what is asked."""

    def __init__(self):
        self.now, self.later, self.calls = 0.0, [], []

    def sleep(self, seconds):
        self.now += seconds
        for due, happen in self.later:
            if self.now >= due:
                happen()


class Answers:
    """A WebUI whose calls return at once, or raise the given error of their name."""

    def __init__(self, clock, **errors):
        self._clock, self._errors = clock, errors

    def __getattr__(self, name):
        def call(*_, **__):
            self._clock.calls.append((name, self._clock.now))
            if name in self._errors:
                raise self._errors[name]
            return Catalog({}, {}) if name == "catalog" else ["one", "two"]

        return call


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def report(tmp_path):
    """Writes what start.sh reports about the engine's process."""
    (tmp_path / "engine").write_text("running 123")
    return (tmp_path / "engine").write_text


@pytest.fixture
def waiting(tmp_path, clock, report):  # noqa: ARG001 - start.sh has reported its engine
    """Make a readiness for an engine that answers so; one with a port is not start.sh's."""

    def make(port=None, **errors):
        supervisor = Supervisor(tmp_path, pid=None if port else 1)
        how = {"clock": lambda: clock.now, "sleep": clock.sleep}
        return Readiness(Answers(clock, **errors), supervisor, ("127.0.0.1", port), **how)

    return make


@pytest.mark.usefixtures("report")
def test_ready_means_that_a_picture_was_made(tmp_path):
    """Also while the model loads, when the port is open and other routes answer."""
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


def test_a_dead_engine_is_reported_at_the_next_poll(waiting, clock, report):
    clock.later.append((0.5, lambda: report("failed 137")))

    with pytest.raises(EngineNotReady, match="not enough memory"):
        waiting(loras=MISSING).wait(30)
    assert clock.now < 0.8


def test_an_engine_that_is_being_restarted_makes_no_first_picture(waiting, clock, report):
    """It still answers, but not for long."""
    report("restarting 0")
    clock.later.append((1.0, lambda: report("running 124")))

    assert waiting().wait(15).process.pid == 124
    assert min(time for _, time in clock.calls) >= 1.0


def test_an_external_engine_that_does_not_run_is_reported_at_the_deadline(waiting, clock, caplog):
    caplog.set_level(logging.INFO)

    with pytest.raises(EngineNotReady, match=r"no program listens there\. Check that it was start"):
        waiting(free_port()).wait(40)
    assert 40 <= clock.now < 41
    assert caplog.text.count("waiting for the engine") == 2  # every 15 s


def test_an_external_engine_gets_no_request_before_its_port_was_open_for_a_while(waiting, clock):
    """In UI mode A1111 dies of an earlier one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        waiting(server.getsockname()[1]).wait(15)

    assert clock.calls[0] == ("loras", 5.0)


def test_an_engine_without_a_checkpoint_is_ready_with_a_warning(waiting, caplog):
    waiting(txt2img=NoCheckpoint("x")).wait(10)

    assert "only jobs that name one can run" in caplog.text


def test_missing_lora_routes_mean_a_damaged_cache_after_a_while(waiting, clock):
    with pytest.raises(CacheDamaged):
        waiting(loras=MISSING).wait(60)
    assert 10 <= clock.now < 11


def test_another_program_at_the_port_is_reported(waiting):
    with pytest.raises(EngineNotReady, match="Another program listens"):
        waiting(loras=MISSING, sd_models=MISSING).wait(60)


def test_a_first_picture_that_keeps_failing_is_reported_with_its_text(waiting):
    broken = EnginePoisoned("illegal memory")

    with pytest.raises(EngineNotReady, match="failed 3 times: ENGINE_POISONED: illegal memory"):
        waiting(txt2img=broken).wait(20)


def test_a_missing_route_gets_a_hint_whether_the_webui_answers(waiting):
    assert "lists 2 checkpoints, but not this route" in waiting().what_answers()
    assert "is not the WebUI's API" in waiting(sd_models=MISSING).what_answers()


@pytest.mark.parametrize(
    ("process", "cause"),
    [
        (EngineProcess("failed", status=137), "not enough memory"),
        (EngineProcess("failed", status=139), "Segmentation fault"),
        (EngineProcess("failed", status=1), "port is in use"),
        (EngineProcess("failed", status=2), "WEBUI_ARGS"),
        (EngineProcess("failed", status=42), "Exit status 42"),
        (EngineProcess("running", pid=1), "raise READY_TIMEOUT"),
        (EngineProcess("unknown"), "make serve"),
    ],
)
def test_the_state_of_the_process_gives_the_likely_causes(process, cause):
    assert cause in likely_causes(process)
