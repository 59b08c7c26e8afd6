"""The two workers that the rows compare, each with an engine and a control plane of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from fakes.a1111.process import free_port, wait_until, write_safetensors
from fakes.runpod_plane import RunPodPlane

PROJECT = Path(__file__).resolve().parents[2]
SIDES = PROJECT / "benchmarks/sides"
HOLD = 20.0  # seconds for which RunPod holds an idle poll here
PATIENCE = 60.0
SETTLE = 0.3  # seconds after a result: the worker has read RunPod's answer, and waits again
OFFICIAL, OURS = "the official worker's handler", "this worker"


def job_of(pictures: int, side: int = 1024) -> dict[str, object]:
    """A job for both workers; few steps, because the engine is not what is measured."""
    return {
        "prompt": "a fox in the snow",
        "steps": 4,
        "width": side,
        "height": side,
        "batch_size": pictures,
        "seed": 1,
    }


@dataclass(frozen=True)
class Worker:
    """A running worker.

    Attributes:
        pid: of the process that runs the handler.
        engine: its address.
    """

    pid: int
    plane: RunPodPlane
    engine: str
    log_file: Path

    def run(self, job: dict[str, object]) -> None:
        """Run one job to its end, and forget its pictures."""
        found = self.plane.wait(self.plane.submit(job, via="runsync"), PATIENCE)
        if found["status"] != "COMPLETED" or len(found["output"]["images"]) != job["batch_size"]:
            raise SystemExit(f"a job failed: {str(found)[:500]}\n{self.log_file.read_text()}")
        self.plane.forget()
        time.sleep(SETTLE)

    def cpu_of(self, job: dict[str, object], times: int) -> float:
        """Milliseconds of CPU time that each of some jobs costs the worker."""
        before = self._cpu()
        for _ in range(times):
            self.run(job)
        return 1000 * (self._cpu() - before) / times

    def _cpu(self) -> float:
        """Seconds of CPU time so far: Linux has a clock of each process, by its inverted number."""
        return time.clock_gettime((~self.pid << 3) | 2)

    @property
    def memory(self) -> float:
        """MB of resident memory now."""
        return self._status("VmRSS")

    def peak_of(self, job: dict[str, object]) -> float:
        """MB of resident memory at most during a job."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak begins anew
        self.run(job)
        return self._status("VmHWM")

    def _status(self, name: str) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def slow(self, seconds: float) -> None:
        """Let each step of the engine take this long."""
        fault = {"fault": "slow_steps", "seconds": seconds, "times": -1}
        requests.post(f"{self.engine}/_fake/faults", json=fault, timeout=10).raise_for_status()

    def posts(self) -> list[tuple[float, float]]:
        """Arrival and end of each POST to txt2img, in seconds."""
        rows = requests.get(f"{self.engine}/_bench/posts", timeout=10).json()
        return [(began, ended) for began, ended in rows]


@contextmanager
def running(name: str, folder: Path, **environ: str) -> Iterator[Worker]:
    """Start one of the two workers and wait until it asks for a job; all of it ends with the body.

    Args:
        name: OURS or OFFICIAL.
        folder: for its files; it is made.
        environ: settings of our worker.
    """
    with ExitStack() as stack:
        plane = stack.enter_context(RunPodPlane(hold=HOLD))
        engine = stack.enter_context(_engine(folder / "engine"))
        variables = _environment(name, folder, engine) | plane.worker_env() | environ
        command = [str(PROJECT / "start.sh")]
        if name == OFFICIAL:
            command = [sys.executable, str(SIDES / "official_worker.py")]
        log_file = folder / "worker.log"
        process = stack.enter_context(_process(command, variables, log_file))
        wait_until(lambda: plane.events("take") or process.poll() is not None, "the first take")
        pid = process.pid if name == OFFICIAL else _handler_of(process.pid, log_file)
        time.sleep(1)  # what begins with the first poll, such as the pings
        yield Worker(pid, plane, engine, log_file)


def _environment(name: str, folder: Path, engine: str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    # The SDK's own checks need 8.8.8.8 and a GPU; at its default level it logs ten lines a job.
    kept |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
    kept |= {"RUNPOD_LOG_LEVEL": "WARN"}
    if name == OFFICIAL:
        return kept | {"ENGINE_URL": engine}
    return kept | {
        "PYTHON": sys.executable,
        "ENGINE": "external",
        "WEBUI_URL": engine,
        "WEBUI_DIR": str(folder / "engine"),
        "MODELS_DIR": str(folder / "engine/models"),
        "BAKED_MODELS_DIR": str(folder / "baked"),
        "RUN_DIR": str(folder / "run"),
        "DEFAULT_TEMPLATE": "none",
        "RESULT_LIMIT_MB": "0",
    }


@contextmanager
def _engine(folder: Path) -> Iterator[str]:
    """The address of a running engine."""
    write_safetensors(folder / "models/Stable-diffusion/first.safetensors")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["--port", str(port), "--data-dir", str(folder)]
    command = [sys.executable, str(SIDES / "noise_engine.py"), "--nowebui", *where]
    with _process(command, os.environ | {"FAKE_A1111_CUDA": "1"}, folder / "engine.log"):
        wait_until(lambda: _answers(f"{url}/sdapi/v1/loras"), "the start of the engine")
        yield url


def _answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(url, timeout=5).ok
    return False


@contextmanager
def _process(
    command: list[str], environ: dict[str, str], log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; all processes below it are killed at the end."""
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        for one in [*family, process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.send_signal(signal.SIGKILL)
        process.wait()


def _handler_of(pid: int, log_file: Path) -> int:
    """The handler's process, which start.sh has started."""
    for child in psutil.Process(pid).children():
        if "handler.py" in " ".join(child.cmdline()):
            return int(child.pid)
    raise SystemExit(f"the worker has ended:\n{log_file.read_text()}")
