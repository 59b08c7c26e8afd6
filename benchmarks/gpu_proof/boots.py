"""Two helpers of the boots: one watches the engine while the worker boots, one starts it alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import IO, Any

from benchmarks.gpu_proof.worker_process import EngineStart, WorkerProcess
from benchmarks.suite.figures import Figure, Goal

POLL_SECONDS = 0.005
ROUTE_SECONDS = 10.0
STOP_SECONDS = 5.0
# What a request raises while the engine boots; the last three: the answer is none of its own.
NOT_ANSWERED = (OSError, HTTPException, ValueError, LookupError, TypeError)
NOTICED = Goal(60.0, "value")  # ms


class BootWatch:
    """Asks the engine all the time whether it draws, while the `with` block lasts."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._answered: float | None = None
        self._drawing: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> BootWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self, boot: int) -> list[Figure]:
        """How late the worker of this boot has noticed its engine; empty if it was not seen."""
        if self._answered is None or self._drawing is None:
            return []
        late = 1000 * (self._drawing - self._answered)
        reason = "A1111 answers some routes before others; the worker asks for its models first."
        name = f"boot {boot}: from the engine's first answer to the worker's first picture"
        return [Figure(name, "ms", (late,), goal=NOTICED, why_missed=reason)]

    def _watch(self) -> None:
        while self._drawing is None and not self._stop.wait(POLL_SECONDS):
            with suppress(*NOT_ANSWERED):
                is_idle = self._worker.is_idle()
                now = time.monotonic()
                self._answered = self._answered or now
                if not is_idle:
                    self._drawing = now


class EngineAlone:
    """An engine without the worker, while the `with` block lasts."""

    def __init__(self, start: EngineStart, log: IO[bytes]) -> None:
        self._url = f"{start.environ['WEBUI_URL']}/sdapi/v1"
        self._process = subprocess.Popen(
            start.command,
            cwd=start.folder,
            env=start.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> EngineAlone:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def draw(self, body: Mapping[str, Any], left: Callable[[], float]) -> None:
        """Wait until the engine answers, and draw a picture.

        Args:
            body: the request.
            left: returns the seconds that are left; raises if there are none.

        Raises:
            OSError: the engine ended, or refused the picture.
        """
        while not self._answers():
            if self._process.poll() is not None:
                raise OSError(f"the engine ended with status {self._process.returncode}")
            left()
            time.sleep(POLL_SECONDS)
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/txt2img", data, headers)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=left()) as answer:  # noqa: S310
            json.load(answer)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/sd-models", timeout=ROUTE_SECONDS) as answer:  # noqa: S310
                json.load(answer)
        except NOT_ANSWERED:
            return False
        return True
