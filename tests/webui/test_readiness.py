import logging
import re
import socket

import pytest
from fakes.a1111.process import free_port, running_a1111, write_safetensors

from worker.errors import (
    CacheDamaged,
    ConnectionLost,
    EngineFault,
    EngineNotReady,
    EnginePoisoned,
    GpuNotUsed,
    NoCheckpoint,
    RouteMissing,
)
from worker.generation.catalog import Catalog
from worker.generation.picture_answer import PictureAnswer
from worker.webui.client import WebUI
from worker.webui.readiness import Readiness, likely_causes
from worker.webui.supervisor import ORPHANED, EngineProcess, Supervisor
from worker.webui.timing import DEFAULT_TIMING

MISSING = RouteMissing("loras: the engine does not have this route.", route="loras")
POISONED = EnginePoisoned("illegal memory")


class World:
    """A fake engine, and the clock and the start.sh beside it.

    Attributes:
        now: seconds; they pass only while the readiness sleeps.
        calls: the engine's routes with the time of the request.
        later: the lines that start.sh writes at a time.
        listed: the engine's checkpoints.
        cuda: its answer about CUDA.
        unusable: those with which it makes no picture; the default is the first one.
    """

    def __init__(self, folder):
        self.now, self.calls, self.later, self.folder = 0.0, [], {}, folder
        self.listed, self.unusable = ["one", "two"], set()
        self.cuda = {"error": "unavailable"}
        self.report("running 123")

    def report(self, line):
        (self.folder / "engine").write_text(line)

    def sleep(self, seconds):
        self.now += seconds
        for due in [due for due in self.later if self.now >= due]:
            self.report(self.later.pop(due))

    def draw(self, _route, body, **_):
        self.note("txt2img")
        name = body.get("override_settings", {}).get("sd_model_checkpoint", self.listed[0])
        if name in self.unusable:
            raise EngineFault(f"size mismatch in {name}")
        return PictureAnswer(["x"], {}, "", {"sd_model_name": name})

    def note(self, route):
        self.calls.append((route, self.now))
        if route in self.errors:
            raise self.errors[route]

    def __getattr__(self, route):
        def call(*_):
            self.note(route)
            return {
                "catalog": Catalog({}, {}),
                "sd_models": [{"model_name": name} for name in self.listed],
                "memory": {"ram": {}, "cuda": self.cuda},
            }.get(route, [])

        return call

    def readiness(self, port=None, *, needs_gpu=False, **errors):
        """Wait for an engine that answers with these errors; with a port, it is an external one."""
        supervisor, self.errors = Supervisor(self.folder, pid=None if port else 1), errors
        how = {"clock": lambda: self.now, "sleep": self.sleep, "needs_gpu": needs_gpu}
        return Readiness(self, supervisor, ("127.0.0.1", port), **how)


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


def test_an_engine_that_begins_to_listen_is_asked_before_the_next_poll(world):
    port, how = free_port(), DEFAULT_TIMING

    def sleep(seconds):
        world.now += seconds
        if world.now > how.ready_poll / 2 and world.errors:
            servers.append(socket.create_server(("127.0.0.1", port)))
            world.errors = {}

    servers, world.errors = [], {"loras": ConnectionLost("no answer.")}
    clock, supervisor = (lambda: world.now), Supervisor(world.folder, pid=1)
    Readiness(world, supervisor, ("127.0.0.1", port), clock=clock, sleep=sleep).wait(30)
    servers.pop().close()
    assert how.ready_poll / 2 < dict(world.calls)["txt2img"] < how.ready_poll


def test_a_dead_engine_is_reported_at_the_next_poll(world):
    world.later[0.5] = "failed 137"
    with pytest.raises(EngineNotReady, match="not enough memory"):
        world.readiness(loras=MISSING).wait(30)
    assert world.now < 0.8


def test_an_engine_that_ended_because_it_cannot_use_the_gpu_is_reported_as_that(world):
    world.report("failed 71")
    with pytest.raises(GpuNotUsed, match="Exit status 71: the engine cannot use the GPU"):
        world.readiness(loras=MISSING).wait(30)


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
    assert caplog.text.count("waiting for the engine") == 1  # after 15 s, then after 30 more


def test_an_external_engine_gets_no_request_before_its_port_was_open_for_a_while(world):
    """In UI mode A1111 dies of an earlier one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        world.readiness(server.getsockname()[1]).wait(15)
    assert world.calls[0] == ("loras", 5.0)


@pytest.mark.parametrize(
    ("listed", "unusable", "checkpoint", "pictures"),
    [
        (["one", "two"], set(), "one", 1),
        (["aaa-odd", "good"], {"aaa-odd"}, "good", 2),
        ([*map(str, range(6)), "good"], set(map(str, range(6))), "good", 7),
        (["odd"], {"odd"}, None, 3),
        (list(map(str, range(30))), set(map(str, range(30))), None, 9),
    ],
)
def test_a_first_picture_that_fails_is_tried_with_the_other_checkpoints(
    world, listed, unusable, checkpoint, pictures
):
    world.listed, world.unusable = listed, unusable
    readiness = world.readiness()
    if checkpoint is None:
        with pytest.raises(EngineNotReady, match=f"failed {pictures} times: .* size mismatch in"):
            readiness.wait(60)
    else:
        assert readiness.wait(60).checkpoint == checkpoint
        assert (world.folder / "engine.checkpoint").read_text() == f"{checkpoint}\n"
    routes = [route for route, _ in world.calls]
    assert routes.count("txt2img") == pictures
    assert ("set_options" in routes) == (checkpoint not in {None, listed[0]})


def test_an_engine_that_lacks_a_route_for_long_is_logged_rarely(world, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(EngineNotReady):
        world.readiness(catalog=RouteMissing("scripts", route="scripts")).wait(390)
    assert len(world.calls) > 1000
    assert len(caplog.records) == 4


def test_an_engine_that_cannot_list_one_of_its_loras_is_ready(world):
    """A1111 answers 500 if the metadata of one file have NaN."""
    assert world.readiness(loras=EngineFault("not JSON compliant")).wait(10).checkpoint == "one"


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


def test_an_engine_without_the_gpu_is_reported_at_once_and_draws_nothing(world):
    with pytest.raises(GpuNotUsed, match="cannot use CUDA and would compute on the CPU"):
        world.readiness(needs_gpu=True).wait(390)
    assert (world.now, "txt2img" in [route for route, _ in world.calls]) == (0, False)
    assert world.readiness().wait(10).checkpoint == "one"  # where the CPU is meant


@pytest.mark.parametrize(
    ("cuda", "logged"),
    [
        ({"system": {"free": 1, "used": 1, "total": 10 << 30}}, ["with 10240 MiB of memory"]),
        ({"system": {"total": 2 << 30}}, ["with 2048 MiB", "and SD1 needs 3500 MiB: use a larger"]),
        ({"error": "out of memory"}, []),  # the figures are missing, but not CUDA
    ],
)
def test_the_memory_of_the_gpu_is_logged_because_nvidia_smi_hides_that_of_a_slice(
    world, caplog, cuda, logged
):
    caplog.set_level(logging.INFO)
    world.cuda = cuda
    assert world.readiness(needs_gpu=True).wait(10).checkpoint == "one"
    found = [message for message in caplog.messages if "GPU" in message]
    assert len(found) == len(logged)
    assert all(part in message for part, message in zip(logged, found, strict=True))


def test_a_missing_route_gets_a_hint_whether_the_webui_answers(world):
    assert "lists 2 checkpoints, but not this route" in world.readiness().what_answers()
    assert "is not the WebUI's API" in world.readiness(sd_models=MISSING).what_answers()


CAUSES = {
    EngineProcess("failed", status=137): "not enough memory",
    EngineProcess("failed", status=139): "Segmentation fault",
    EngineProcess("failed", status=1): "port is in use",
    EngineProcess("failed", status=2): "WEBUI_ARGS",
    EngineProcess("failed", status=71): "cannot use the GPU",
    EngineProcess("failed", status=42): "Exit status 42",
    EngineProcess("failed", status=0, cause="no restart (hung)"): r"^No restart \(hung\)\.$",
    EngineProcess("failed", status=137, cause="no restart"): r"No restart\. Killed \(137\)",
    ORPHANED: "Start.sh has ended, and its engine with it.$",
    EngineProcess("running", pid=1): "raise READY_TIMEOUT",
    EngineProcess("unknown"): "make serve",
}


@pytest.mark.parametrize("process", CAUSES)
def test_the_state_of_the_process_gives_the_likely_causes(process):
    assert re.search(CAUSES[process], likely_causes(process))
