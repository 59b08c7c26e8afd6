"""An engine as a process of its own: the embedded one, or a real A1111."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from fakes.a1111.process import free_port, wait_until

from benchmarks.suite.machine import PROJECT

PICTURE = {"prompt": "a fox", "steps": 1, "width": 64, "height": 64, "seed": 1}
BOOT_SECONDS = 120
A1111_FLAGS = (
    *("--api", "--nowebui", "--no-download-sd-model", "--do-not-download-clip"),
    *("--skip-version-check", "--skip-python-version-check", "--skip-torch-cuda-test"),
    *("--disable-console-progressbars", "--no-prompt-history", "--use-cpu", "all", "--no-half"),
)


class EngineProcess:
    """A client of one engine that runs."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/sdapi/v1/"
        self._session = requests.Session()

    def answers(self) -> bool:
        """Whether it lists its LoRAs: the last route that A1111 mounts."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the engine ended with status {self.process.returncode}")
        try:
            return self._session.get(self._url + "loras", timeout=5).ok
        except requests.RequestException:
            return False

    def post(self, route: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """The engine's answer. Raises requests.HTTPError."""
        answer = self._session.post(self._url + route, json=body, timeout=BOOT_SECONDS)
        answer.raise_for_status()
        return answer.json()

    def switch(self, checkpoint: str) -> float:
        """Have this checkpoint loaded; returns the seconds."""
        began = time.perf_counter()
        self.post("options", {"sd_model_checkpoint": checkpoint})
        return time.perf_counter() - began

    def check_drawn_with(self, checkpoint: str) -> None:
        """Make one small picture with the checkpoint that is loaded. Raises RuntimeError."""
        info = self.post("txt2img", PICTURE)["info"]
        if f'"sd_model_name": "{checkpoint}"' not in info:
            raise RuntimeError(f"the engine did not draw with {checkpoint}: {info}")


@contextmanager
def embedded(data_dir: Path) -> Iterator[EngineProcess]:
    """The embedded engine with this data folder."""
    command = (sys.executable, "-m", "engine", "--data-dir", str(data_dir), "--device", "cpu")
    with _running(command, PROJECT, data_dir) as engine:
        yield engine


@contextmanager
def a1111(webui_dir: Path, python: Path, data_dir: Path) -> Iterator[EngineProcess]:
    """A real A1111 on the CPU with this data folder."""
    command = (str(python), "-u", "webui.py", *A1111_FLAGS, "--data-dir", str(data_dir))
    with _running(command, webui_dir, data_dir) as engine:
        yield engine


@contextmanager
def _running(command: Sequence[str], folder: Path, data_dir: Path) -> Iterator[EngineProcess]:
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (data_dir / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        engine = EngineProcess(port, process)
        wait_until(engine.answers, "the engine", BOOT_SECONDS)
        engine.post("txt2img", PICTURE)  # A1111 answers before it has loaded its first checkpoint
        yield engine
    finally:
        process.kill()
        process.wait()
