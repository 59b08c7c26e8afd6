"""A whole worker under test: the real start.sh, handler and SDK, with the fake A1111 as engine."""

import base64
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from fakes.a1111.process import free_port, wait_until, write_safetensors
from fakes.model_store import environment_for
from fakes.runpod_plane import RunPodPlane
from fakes.supervised import environment, link_project

TESTS = Path(__file__).resolve().parents[1]
HANDLER = TESTS.parent / "handler.py"
QUICK_HANDLER = TESTS / "fakes" / "quick_handler.py"
WEBUI_PY = "from fakes.a1111.__main__ import main\n\nmain()\n"
JOB_TIMEOUT = 60.0

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 1}
FOREVER = -1  # how often a fault happens

Job = dict[str, Any]


class WorkerProcess:
    """A started worker; its engine reads `webui`, its model store is `store`."""

    def __init__(
        self,
        folder: Path,
        plane: RunPodPlane,
        environ: Mapping[str, str],
        handler: Path,
        arguments: tuple[str, ...],
    ) -> None:
        self.plane = plane
        self.webui, self.store = folder / "webui", folder / "models"
        self.run_dir = folder / "run"
        self.log_file = folder / "worker.log"
        settings = environment(folder, free_port()) | {
            "PYTHONPATH": str(TESTS),
            "READY_TIMEOUT": "60",
            "SHUTDOWN_GRACE": "20",
        }
        self.engine_url = settings["WEBUI_URL"]
        self.webui.mkdir(parents=True, exist_ok=True)
        (self.webui / "webui.py").write_text(WEBUI_PY)
        project = folder / "project"
        link_project(project, "model_manager.py", "engine")
        (project / "handler.py").symlink_to(handler)
        with self.open_log() as log:
            self.process = subprocess.Popen(
                [project / "start.sh", *arguments],
                env={**settings, **plane.worker_env(), **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def open_log(self) -> Any:
        """Where its output goes."""
        return self.log_file.open("ab")

    def log(self) -> str:
        """Its whole log."""
        return self.log_file.read_text()

    def wait_until_taking_jobs(self) -> None:
        """Wait for its first job-take; if it ends instead, its log is in the message."""

        def takes() -> bool:
            assert self.process.poll() is None, self.log()
            return bool(self.plane.events("take"))

        wait_until(takes, "the worker's first job-take")

    def run(self, job_input: Any, timeout: float = JOB_TIMEOUT) -> Job:
        """Queue a job and wait for its end."""
        return self.plane.wait(self.plane.submit(job_input), timeout)

    def fault(self, fault: str, **params: Any) -> None:
        """Switch a fault of the engine on."""
        body = {"fault": fault, **params}
        requests.post(f"{self.engine_url}/_fake/faults", json=body, timeout=5).raise_for_status()

    def no_faults(self) -> None:
        """Switch all faults of the engine off."""
        requests.delete(f"{self.engine_url}/_fake/faults", timeout=5).raise_for_status()

    def requests(self, path: str = "txt2img") -> list[dict[str, Any]]:
        """The requests that the engine received on a route, in order."""
        received = requests.get(f"{self.engine_url}/_fake/log", timeout=5).json()
        return [request for request in received if request["path"].endswith(path)]

    def engine_is_idle(self) -> bool:
        """Whether no job runs in the engine."""
        answer = requests.get(f"{self.engine_url}/sdapi/v1/progress", timeout=5)
        return not answer.json()["state"]["job"]

    def wait_until_generating(self) -> None:
        """Wait until a job runs in the engine."""
        wait_until(lambda: not self.engine_is_idle(), "a job in the engine")

    def engine_pid(self) -> int:
        """The engine's process number, as start.sh reports it."""
        state, pid = (self.run_dir / "engine").read_text().split()
        assert state == "running"
        return int(pid)

    def kill_engine_in_a_job(self) -> Job:
        """SIGKILL the engine in the middle of a long job; returns the job's end."""
        self.fault("slow_steps", seconds=1)
        job = self.plane.submit(SMALL | {"steps": 100})
        self.wait_until_generating()
        os.kill(self.engine_pid(), signal.SIGKILL)
        return self.plane.wait(job, JOB_TIMEOUT)

    def end(self) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(60)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()


@contextmanager
def running_worker(
    folder: Path,
    plane: RunPodPlane,
    *,
    faults: tuple[dict[str, Any], ...] = (),
    checkpoints: tuple[str, ...] = ("first", "second"),
    loras: tuple[str, ...] = ("detail",),
    wait: bool = True,
    handler: Path = QUICK_HANDLER,
    hosts: Any = None,
    arguments: tuple[str, ...] = (),
    **environ: str,
) -> Iterator[WorkerProcess]:
    """A worker with small model files in its store; all of its processes are killed at the end.

    `wait=False` does not wait until it takes jobs. `handler` is its program: HANDLER is the real
    one, the other has shorter waits. `hosts` are the ModelHosts that it fetches from, and
    `arguments` are those of start.sh.
    """
    if hosts:
        environ = environment_for(hosts, folder) | environ
    for number, name in enumerate(checkpoints):
        path = folder / "models/Stable-diffusion" / f"{name}.safetensors"
        write_safetensors(path, bytes([number]) * 8)
    for name in loras:
        write_safetensors(folder / "models/Lora" / f"{name}.safetensors")
    environ["FAKE_A1111_FAULTS"] = json.dumps(faults)
    worker = WorkerProcess(folder, plane, environ, handler, arguments)
    try:
        if wait:
            worker.wait_until_taking_jobs()
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.terminate()
            try:
                worker.end()
            finally:
                worker.process.kill()
                worker.process.wait()


def completed(job: Job) -> dict[str, Any]:
    """The output of a job that must have completed."""
    assert job["status"] == "COMPLETED", job
    return dict(job["output"])


def failed(job: Job, code: str) -> str:
    """The error text of a job that must have failed with this code."""
    assert job["status"] == "FAILED", job
    assert job["error"].startswith(f"{code}: "), job["error"]
    assert job["output"]["code"] == code
    assert job["output"]["message"] == "Failed to process inference request"
    return str(job["error"])


def png_size(image: str) -> tuple[int, int]:
    """Width and height of an image that must be a base64 PNG."""
    png = base64.b64decode(image, validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
