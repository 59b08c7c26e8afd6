"""The worker under proof: the real start.sh, handler and SDK, with one of the two engines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_proof.plane import POLL_SECONDS, Plane
from worker.config.settings import PROJECT, Settings

# The operator's choices that the proof keeps; its folders and its address are its own.
KEPT = {"engine_variables", "a1111_speedups", "device", "log_level", "webui_args", "webui_python"}
ROUTE_SECONDS = 10.0
STOP_SECONDS = 12.0
KILL_SECONDS = 3.0


class WorkerFailed(Exception):
    """The worker ended, or did not start; the message has its last lines."""


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(
    engine: str, folder: Path, plane: Plane, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables of a worker: its data below `folder`, its jobs from `plane`."""
    dropped = set(Settings.model_fields) - KEPT
    kept = {
        name: value
        for name, value in environ.items()
        if name.lower() not in dropped and not name.startswith("RUNPOD_")
    }
    is_a1111 = engine == "a1111"
    empty = folder / "empty"
    if environ.get("DEVICE") != "cpu":
        kept["RUNPOD_GPU_COUNT"] = "1"  # so that the fitness check of the GPU is made
    return {
        **({"PYTHON": sys.executable} | kept),
        **plane.environment(),
        "ENGINE": engine,
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "WEBUI_DIR": environ["WEBUI_DIR"] if is_a1111 else str(folder / "embedded"),
        "MODELS_DIR": str(folder / "models"),
        "BAKED_MODELS_DIR": str(empty if is_a1111 else demo_folder()),
        "DEFAULT_TEMPLATE": "none",
        "RUN_DIR": str(folder / f"run-{engine}"),
        "RESULT_LIMIT_MB": "0",
        "SHUTDOWN_GRACE": "10",
    }


def demo_folder() -> Path:
    """The demo model's folder: `demo` in a checkout, `models` in the embedded image."""
    return next(
        (PROJECT / name for name in ("demo", "models") if (PROJECT / name).is_dir()), PROJECT
    )


@dataclass(frozen=True)
class EngineStart:
    """How start.sh has started an engine, so that it can be started without the worker."""

    command: list[str]
    folder: str
    environ: dict[str, str]


class WorkerProcess:
    """A started worker; its log is `log_file`."""

    def __init__(self, environ: Mapping[str, str], log_file: Path, plane: Plane) -> None:
        self.environ, self.log_file, self._plane = environ, log_file, plane
        self._takes = plane.takes
        self._started = time.monotonic()
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [str(PROJECT / "start.sh")],
                env=dict(environ),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_until_ready(self, seconds: float) -> float:
        """Wait for its first request for a job; returns the seconds since its start.

        Raises:
            WorkerFailed: it ended, or did not ask in time.
        """
        deadline = time.monotonic() + seconds
        while self._plane.takes == self._takes:
            self.check_alive()
            if time.monotonic() > deadline:
                raise WorkerFailed(f"it took no job within {seconds:.0f} s: {self.last_lines()}")
            self._plane.wait_until(lambda: self._plane.takes > self._takes, 0.1)
        return time.monotonic() - self._started

    @property
    def has_ended(self) -> bool:
        """Whether start.sh has ended."""
        return self._process.poll() is not None

    def check_alive(self) -> None:
        """Raise WorkerFailed if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise WorkerFailed(f"start.sh ended with status {status}: {self.last_lines()}")

    def log(self) -> str:
        """Everything that it has logged."""
        return self.log_file.read_text(errors="replace")

    def last_lines(self, count: int = 5) -> str:
        """The end of its log, on one line."""
        return " | ".join(self.log().splitlines()[-count:])[-1500:]

    def ask(
        self, route: str, body: Mapping[str, Any] | None = None, seconds: float = ROUTE_SECONDS
    ) -> Any:  # noqa: ANN401 - JSON
        """The engine's own answer on a route, without the worker: GET, or POST with `body`."""
        url = f"{self.environ['WEBUI_URL']}/sdapi/v1/{route}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - http to loopback
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return json.load(answer)

    def processes(self) -> dict[str, psutil.Process]:
        """Those that are there now: the `worker`, which is the handler, and its `engine`."""
        found = {}
        with suppress(psutil.Error, OSError, ValueError, IndexError):
            state = Path(self.environ["RUN_DIR"], "engine").read_text().split()
            found["engine"] = psutil.Process(int(state[1]))
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                if any(part.endswith("handler.py") for part in child.cmdline()):
                    found["worker"] = child
        return found

    def cpu_seconds(self) -> float:
        """CPU time that the handler has used. Raises WorkerFailed if it is gone."""
        handler = self.processes().get("worker")
        if handler is None:
            raise WorkerFailed(f"the handler is not running: {self.last_lines()}")
        times = handler.cpu_times()
        return float(times.user + times.system)

    def engine_start(self) -> EngineStart | None:
        """How the running engine was started; None if that cannot be read."""
        engine = self.processes().get("engine")
        if engine is None:
            return None
        with suppress(psutil.Error):
            return EngineStart(engine.cmdline(), engine.cwd(), engine.environ())
        return None

    def is_idle(self) -> bool:
        """Whether no job runs in the engine."""
        return not self.ask("progress?skip_current_image=true")["state"]["job"]

    def seconds_until_idle(self, seconds: float) -> float:
        """Wait until the engine is idle; returns the wait. Raises TimeoutError."""
        began = time.monotonic()
        while not self.is_idle():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"the engine was not idle within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def stop(self) -> int:
        """SIGTERM, and KILL if it does not end; returns start.sh's exit status."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # The handler notices that start.sh is gone, and ends the engine.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait(KILL_SECONDS)
