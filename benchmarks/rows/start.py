"""From the start of a worker to its first delivered picture."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
import uvicorn
from fakes.a1111.engine import Engine
from fakes.a1111.faults import Faults
from fakes.a1111.process import free_port, write_safetensors
from fakes.a1111.server import build_app
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import SD1, entries, framed
from fakes.model_store import environment_for
from fakes.runpod_plane import RunPodPlane
from fakes.supervised import environment

from benchmarks.rows import PROJECT
from benchmarks.sides.sequential_start import wait_for_engine
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns
from runpod_sdk import OWN_CHECKS_ONLY
from worker.models.download.limits import DEFAULT
from worker.webui.client import WebUI
from worker.webui.readiness import Readiness
from worker.webui.supervisor import Supervisor

TITLE = "The start of a worker"
ABOUT = """\
The whole worker: `start.sh`, the handler, RunPod's SDK and the tests' stand-in for A1111, with a
job in the queue before the start. The stand-in needs B seconds from its process to its first
picture; the default template's checkpoint takes D seconds from a throttled host. Both are measured
alone in the same round; the limit is the longer of them.

The rival starts as published workers do: first the download, then the engine, with the plain SDK
beside it that asks the engine every 0.2 s (RunPod's worker-a1111).

*Readiness noticed* is the time from the moment at which the engine listens, and can draw, until
its client asks it for something. We look at the port every 30 ms, the rival asks every 0.2 s. The
engine is the stand-in, in the same process, which begins to listen at a random moment.

*handler.py* is measured from its process to the line `waiting for the engine` in its log. All
programs have their bytecode, as in the image.
"""

BOOT, DOWNLOAD = 8.0, 6.0  # seconds
SIZE = DEFAULT.first_part // 2  # bytes: one connection fetches it, as that of the rival
DEADLINE = 60.0
JOB = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
WEBUI_PY = f"""\
import sys
sys.path.insert(0, {str(PROJECT / "tests")!r})
from fakes.a1111.__main__ import main
main()
"""


@dataclass
class Case:
    """One start.

    Attributes:
        boot: seconds of sleep in the engine's boot; its imports come on top.
        download: seconds of the checkpoint's download.
    """

    folder: Path
    boot: float
    download: float

    @contextmanager
    def hosts(self) -> Iterator[tuple[ModelHosts, str]]:
        """The host of the checkpoint, and its URL there."""
        header = entries(SD1)
        size = max(one["data_offsets"][1] for one in header.values())
        header["filler"] = {"dtype": "U8", "shape": [SIZE], "data_offsets": [size, size + SIZE]}
        with ModelHosts() as hosts:
            file = self.folder / "checkpoint.safetensors"
            file.write_bytes(framed(header) + bytes(size + SIZE))
            model = hosts.add_model(
                version_id=1, data=file, name=file.name, require_auth=False, base_model="SD 1.5"
            )
            hosts.throttle(file.stat().st_size / self.download)
            yield hosts, model.file_url

    def environ(self) -> dict[str, str]:
        """Of the engine, and of every Python process."""
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        slow = [{"fault": "slow_boot", "seconds": self.boot}]
        return {
            **kept,
            "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "bench-start-bytecode"),
            "FAKE_A1111_FAULTS": json.dumps(slow),
            "PYTHONPATH": str(PROJECT),
        }

    def write_engine(self) -> Path:
        """A1111's folder, with the stand-in in it."""
        folder = self.folder / "webui"
        folder.mkdir()
        (folder / "webui.py").write_text(WEBUI_PY)
        return folder


@contextmanager
def process(words: Sequence[str], environ: dict[str, str], log: Path) -> Iterator[Any]:
    """A program and all that it starts, killed at the end."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            words, env=environ, stdout=output, stderr=output, start_new_session=True, cwd=PROJECT
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def until_first_picture(plane: RunPodPlane, job_id: str, began: float, log: Path) -> float:
    """Seconds from the start to the job's result."""
    job = plane.wait(job_id, DEADLINE)
    if job["status"] != "COMPLETED":
        raise RuntimeError(f"the first job: {job}\n{log.read_text()}")
    return time.monotonic() - began


def ours(case: Case) -> float:
    """Our worker's start, from start.sh to the first result."""
    log = case.folder / "log"
    with case.hosts() as (hosts, url), RunPodPlane(hold=1.0) as plane:
        write_template(case.folder / "templates.json", url)
        case.write_engine()
        own = environment(case.folder, free_port()) | environment_for(hosts, case.folder)
        own |= {
            "TEMPLATES_FILE": str(case.folder / "templates.json"),
            "DEFAULT_TEMPLATE": "first",
            "SHUTDOWN_GRACE": "5",
        }
        job = plane.submit(JOB)
        began = time.monotonic()
        environ = {**case.environ(), **plane.worker_env(), **own}
        with process([str(PROJECT / "start.sh")], environ, log):
            seconds = until_first_picture(plane, job, began, log)
        if len(hosts.asked("storage")) != 1:
            raise RuntimeError("the download took other requests than the rival's one")
        return seconds


def sequential(case: Case) -> float:
    """The rival's start, from its download to the first result."""
    log = case.folder / "log"
    with case.hosts() as (_, url), RunPodPlane(hold=1.0) as plane:
        words = [sys.executable, "-m", "benchmarks.sides.sequential_start", url, str(free_port())]
        environ = {**case.environ(), **plane.worker_env(), **OWN_CHECKS_ONLY}
        environ["RUNPOD_LOG_LEVEL"] = "WARN"
        job = plane.submit(JOB)
        folder = case.write_engine()
        began = time.monotonic()
        with process([*words, str(folder)], environ, log):
            return until_first_picture(plane, job, began, log)


def write_template(path: Path, url: str) -> None:
    """A templates file with one template, of that checkpoint."""
    checkpoint = {"name": "Model", "url": url}
    template = {"name": "First", "description": "One", "checkpoint": checkpoint}
    path.write_text(json.dumps({"templates": {"first": template}, "default_template": "first"}))


def engine_alone(case: Case) -> float:
    """B: seconds from the engine's process to its first picture."""
    folder, port = case.write_engine(), free_port()
    words = [sys.executable, str(folder / "webui.py"), "--nowebui", "--port", str(port)]
    words += ["--data-dir", str(folder)]
    began = time.monotonic()
    with process(words, case.environ(), case.folder / "log"):
        while True:
            with suppress(requests.exceptions.ConnectionError):
                requests.post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", json=JOB, timeout=60)
                return time.monotonic() - began
            time.sleep(0.005)


def download_alone(case: Case) -> float:
    """D: seconds of the plain download."""
    with case.hosts() as (_, url):
        began = time.monotonic()
        requests.get(url, timeout=60).raise_for_status()
        return time.monotonic() - began


def run(bench: Bench, measured: Callable[[Case], float], boot: float, download: float) -> float:
    """Measure one side once."""
    with bench.in_memory() as folder:
        return measured(Case(folder, boot, download))


class LateEngine:
    """The stand-in in a thread, which listens after a while and notes when it was asked."""

    def __init__(self, folder: Path) -> None:
        self.port, self.listens = free_port(), 0.0
        self.asked: dict[str, float] = {}
        (folder / "models/Stable-diffusion").mkdir(parents=True)
        write_safetensors(folder / "models/Stable-diffusion/one.safetensors")
        engine = Engine(folder, None, Faults(""))
        engine.model.load_first(0.0)
        self._app = build_app(engine)
        quiet: dict[str, Any] = {"access_log": False, "lifespan": "off", "log_level": "error"}
        config = uvicorn.Config(self._note, interface="asgi3", **quiet)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    async def _note(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        self.asked.setdefault(scope["path"].rpartition("/")[2], time.monotonic())
        await self._app(scope, receive, send)

    def _serve(self) -> None:
        time.sleep(random.uniform(0.5, 1.0))  # noqa: S311
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.listens = time.monotonic()
            self._server.run(sockets=[listening])

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its URL."""
        self._thread.start()
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            self._server.should_exit = True
            self._thread.join()


def noticed_by_ours(case: Case) -> float:
    """Milliseconds until we ask for something."""
    engine = LateEngine(case.folder / "webui")
    (case.folder / "engine").write_text("running 1")
    with engine.running() as url:
        supervisor = Supervisor(case.folder, pid=1)
        Readiness(WebUI(url), supervisor, ("127.0.0.1", engine.port)).wait(DEADLINE)
    return (min(engine.asked.values()) - engine.listens) * 1000


def noticed_by_poll(case: Case) -> float:
    """Milliseconds until a poll every 0.2 s asks."""
    engine = LateEngine(case.folder / "webui")
    with engine.running() as url:
        wait_for_engine(f"{url}/sdapi/v1", requests.Session())
    return (engine.asked["sd-models"] - engine.listens) * 1000


def until_it_waits(case: Case) -> float:
    """Seconds from the handler's process to its line about the engine."""
    log = case.folder / "log"
    address = f"http://127.0.0.1:{free_port()}"
    own = {"ENGINE": "external", "WEBUI_URL": address, "DEFAULT_TEMPLATE": "none"}
    own |= {"MODELS_DIR": str(case.folder), "RUN_DIR": str(case.folder / "run")}
    began = time.monotonic()
    with process([sys.executable, "handler.py"], case.environ() | own, log) as handler:
        while b"waiting for the engine" not in log.read_bytes():
            if handler.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.002)
        return time.monotonic() - began


def make_run(case: Case) -> float:
    """Seconds of `make run`, whose environment is installed and whose models are in memory."""
    began = time.monotonic()
    words = ["make", "--silent", "--old-file=.venv/.ready", "run"]
    environ = {**case.environ(), "OUTPUT_DIR": str(case.folder), "RUN_FLAGS": "--quiet"}
    done = subprocess.run(
        words, cwd=PROJECT, env=environ, capture_output=True, text=True, check=False, timeout=200
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.monotonic() - began


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Start both sides in turns."""
    boot, download = (1.0, 1.0) if bench.quick else (BOOT - 1, DOWNLOAD)
    if not bench.quick:
        run(bench, ours, 1.0, 1.0)  # writes the bytecode
    limits: list[float] = []

    def our_round() -> float:
        alone = run(bench, engine_alone, boot, download), run(bench, download_alone, 0, download)
        limits.append(max(alone))
        return run(bench, ours, boot, download)

    side = partial(run, bench, sequential, boot, download)
    found, others = in_turns(bench.rounds(3), our_round, side)
    limit = statistics.median(limits)
    name = f"Start to the first delivered picture, B = {boot + 1:g} s, D = {download:g} s"
    goal = Goal(goal_of(limit), of="value")
    why = (
        "Before the engine's process, start.sh needs 0.5 to 0.6 s on this machine: the import of"
        " the settings (pydantic) and of the model manager. On two cores the imports of the"
        " handler and of the SDK slow the engine's own."
    )
    yield Figure(name, "s", found, tuple(limits), "the longer of B and D alone", goal, why)
    yield Figure(name, "s", found, others, "a sequential start")
    handler = tuple(run(bench, until_it_waits, 0, 0) for _ in range(bench.rounds(5)))
    imports = (
        "The imports: 600 modules. Of their time, the worker's own modules take 57 %, which build"
        " 171 dataclasses and about 100 pydantic models, and pydantic itself takes 13 %."
    )
    yield readiness(bench)
    wanted = Goal(0.5, of="value")
    line = "handler.py from its process to `waiting for the engine`"
    yield Figure(line, "s", handler, goal=wanted, why_missed=imports)
    if bench.quick:
        return
    made = tuple(run(bench, make_run, 0, 0) for _ in range(2))
    drawing = (
        "The embedded engine's imports of torch and diffusers, and its steps on the CPU: a script"
        " with diffusers alone needs nearly as long to its first picture (see the embedded engine)."
    )
    yield Figure("`make run`", "s", made, goal=Goal(8, of="value"), why_missed=drawing)
    yield by_download(bench, boot)


def goal_of(limit: float) -> float:
    """Seconds that a start may take whose boot or download alone takes `limit`."""
    return round(1.05 * limit + 0.5, 2)


def readiness(bench: Bench) -> Figure:
    """How soon both sides notice that the engine can draw; the 95th percentile of 20."""
    ours_ms, others = in_turns(
        bench.rounds(20),
        partial(run, bench, noticed_by_ours, 0, 0),
        partial(run, bench, noticed_by_poll, 0, 0),
    )
    p95, rival = (percentile_95(ours_ms),), (percentile_95(others),)
    return Figure(
        "Readiness noticed, 95th percentile",
        "ms",
        p95,
        rival,
        "a poll every 0.2 s",
        Goal(60, of="value"),
        "The port is looked at every 30 ms; the rest is the wait for a core of this machine.",
    )


def percentile_95(values: Sequence[float]) -> float:
    """The smallest of the values that at least 95 % of them do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def by_download(bench: Bench, boot: float) -> Curve:
    """The start by the seconds of the download."""
    sides = {"ours": ours, "sequential": sequential}
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in (*sides, "the goal")}
    for download in (2.0, 6.0, 10.0, 14.0):
        for name, side in sides.items():
            points[name].append((download, run(bench, side, boot, download)))
        points["the goal"].append((download, goal_of(max(boot + 1, download))))
    lines = {name: tuple(line) for name, line in points.items()}
    title = "Start to the first delivered picture by the seconds of the download, B = 8 s"
    return Curve(title, "seconds of the download alone", "seconds", lines)
