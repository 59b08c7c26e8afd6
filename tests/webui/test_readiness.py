import http.server
import threading
import time

import pytest
from fakes.a1111.process import free_port, running_a1111, write_safetensors

from worker.errors import CacheDamaged, EngineNotReady
from worker.webui.client import WebUI
from worker.webui.readiness import Readiness, likely_causes
from worker.webui.supervisor import EngineProcess, Supervisor
from worker.webui.timing import EngineTiming


@pytest.fixture
def data(tmp_path):
    write_safetensors(tmp_path / "webui/models/Stable-diffusion/tiny.safetensors")
    return tmp_path / "webui"


@pytest.fixture
def supervised(tmp_path):
    """A readiness that believes start.sh to own the engine; `tell` plays start.sh."""
    (tmp_path / "run").mkdir()

    def build(port, **timing):
        supervisor = Supervisor(tmp_path / "run", pid=1)
        webui = WebUI(f"http://127.0.0.1:{port}")
        return Readiness(webui, supervisor, ("127.0.0.1", port), timing=EngineTiming(**timing))

    def tell(line):
        (tmp_path / "run/new").write_text(line)  # never a file half written, as from start.sh
        (tmp_path / "run/new").replace(tmp_path / "run/engine")

    tell("running 123")
    return build, tell


def foreign(engine_port, **timing):
    """A readiness for an engine that somebody else started."""
    webui, supervisor = WebUI(f"http://127.0.0.1:{engine_port}"), Supervisor(None, pid=None)
    return Readiness(webui, supervisor, ("127.0.0.1", engine_port), timing=EngineTiming(**timing))


def test_ready_means_that_a_picture_was_made(data, supervised, tmp_path):
    build, _ = supervised
    with running_a1111(data, faults=({"fault": "slow_boot", "seconds": 1},), wait=False) as engine:
        ready = build(engine.port).wait(15)
        posts = [request for request in engine.log() if request["path"].endswith("txt2img")]

    assert len(posts) == 1
    assert ready.process.pid == 123
    assert ready.catalog.sampler("Euler", None) == ("Euler", None)
    assert (tmp_path / "run/engine.ready").read_text() == "123\n"


def test_an_open_port_is_not_enough_while_the_model_loads(data, supervised):
    build, _ = supervised
    slow = {"fault": "model_slow", "seconds": 2}
    with running_a1111(data, faults=(slow,), wait=False) as engine:
        assert build(engine.port).wait(15).seconds >= 1.5


def test_a_dead_engine_is_reported_within_a_second(supervised):
    build, tell = supervised
    threading.Timer(0.5, tell, ["failed 137"]).start()
    started = time.monotonic()

    with pytest.raises(EngineNotReady, match="not enough memory"):
        build(free_port()).wait(30)
    assert time.monotonic() - started < 1.5


def test_an_engine_that_is_being_restarted_makes_no_first_picture(data, supervised):
    """It still answers, but not for long."""
    build, tell = supervised
    with running_a1111(data) as engine:
        tell("restarting 0")
        threading.Timer(1.0, tell, ["running 124"]).start()
        ready = build(engine.port).wait(15)

    assert ready.process.pid == 124
    assert ready.seconds >= 0.9


def test_an_engine_that_nobody_started_is_reported_at_the_deadline():
    started = time.monotonic()

    with pytest.raises(EngineNotReady, match=r"nothing listens there\. Is it started"):
        foreign(free_port()).wait(1)
    assert time.monotonic() - started < 2


def test_a_foreign_engine_in_ui_mode_is_not_polled_to_death(data):
    fatal = {"fault": "ui_mode", "seconds": 1, "fatal": True}
    with running_a1111(data, faults=(fatal,), wait=False) as engine:
        foreign(engine.port, quiet=2).wait(15)
        assert engine.process.poll() is None


def test_no_checkpoint_yet_is_ready_with_a_warning(tmp_path, supervised, caplog):
    build, _ = supervised
    with running_a1111(tmp_path / "webui") as engine:
        build(engine.port).wait(10)

    assert "only jobs that name one can run" in caplog.text


def test_missing_lora_routes_mean_a_damaged_cache(data, supervised):
    build, _ = supervised
    damaged = data / "cache/hashes-addnet/cache.db"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"garbage" * 100)
    with running_a1111(data, wait=False) as engine, pytest.raises(CacheDamaged):
        build(engine.port, route_patience=0.5).wait(10)


def test_a_first_picture_that_keeps_failing_is_reported_with_its_text(data, supervised):
    build, _ = supervised
    broken = {"fault": "cuda_fault", "times": -1}
    told = r"failed 3 times: ENGINE_POISONED: .*illegal memory"
    with running_a1111(data, faults=(broken,)) as engine, pytest.raises(EngineNotReady, match=told):
        build(engine.port).wait(20)


def test_another_program_at_the_port_is_named_as_such(supervised):
    build, _ = supervised
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(EngineNotReady, match="Another program listens"):
            build(server.server_port, route_patience=0.5).wait(10)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Refusing(http.server.BaseHTTPRequestHandler):
    """Somebody else's FastAPI."""

    def do_GET(self):
        body = b'{"detail":"Not Found"}'
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""


CAUSES = [
    (EngineProcess("failed", status=137), "not enough memory"),
    (EngineProcess("failed", status=139), "Segmentation fault"),
    (EngineProcess("failed", status=1), "port is in use"),
    (EngineProcess("failed", status=2), "WEBUI_ARGS"),
    (EngineProcess("failed", status=42), "Exit status 42"),
    (EngineProcess("running", pid=1), "raise READY_TIMEOUT"),
    (EngineProcess("unknown"), "make serve"),
]


@pytest.mark.parametrize(("process", "said"), CAUSES)
def test_likely_causes_are_told_by_how_the_process_ended(process, said):
    assert said in likely_causes(process)
