"""Readiness: the engine has made a picture.

An open port is not enough, nor is a 200 from some route: A1111 answers both while its model is
still loading, and another program may hold the port. So the last step is a real txt2img, which
is the warm-up at the same time.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass

from worker.errors import (
    CacheDamaged,
    ConnectionLost,
    EngineNotReady,
    NoCheckpoint,
    RouteMissing,
    WorkerError,
)
from worker.webui.catalog import Catalog
from worker.webui.client import WebUI
from worker.webui.supervisor import EngineProcess, Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

log = logging.getLogger("worker.readiness")

FIRST_PICTURE = {"prompt": "", "steps": 1, "width": 64, "height": 64, "seed": 1}


@dataclass(frozen=True)
class Ready:
    """What is known about an engine that can generate.

    Attributes:
        catalog: names that a job may use.
        process: the one that made the picture.
        seconds: how long it took.
    """

    catalog: Catalog
    process: EngineProcess
    seconds: float


class Readiness:
    """Waits for one engine; always bounded."""

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        address: tuple[str, int],
        *,
        timing: EngineTiming = DEFAULT_TIMING,
    ) -> None:
        self._webui = webui
        self._supervisor = supervisor
        self._address = address
        self._timing = timing
        self._next_line = 0.0  # when "still waiting" may be said again

    def wait(self, timeout: float) -> Ready:
        """Block until the engine made a picture.

        Raises:
            EngineNotReady: its process ended, or the timeout passed; names the likely causes.
            CacheDamaged: all routes are there but the LoRAs': the cache must be removed.
        """
        started = time.monotonic()
        deadline = started + timeout
        self._next_line = started + self._timing.ready_log_every
        if not self._supervisor.can_restart:
            self._wait_for_port(deadline)
        ready = self._wait_for_picture(started, deadline)
        self._supervisor.mark_ready(ready.process)
        return ready

    def what_answers(self) -> str:
        """Why a route can be missing, for the caller: is it the WebUI at all?"""
        try:
            models = self._webui.sd_models()
        except WorkerError:
            return "What answers at WEBUI_URL is not the WebUI's API: is another program there?"
        return f"The WebUI's API is there and lists {len(models)} checkpoints, but not this route."

    def _wait_for_port(self, deadline: float) -> None:
        """For a foreign engine: no HTTP before its port has been open for a while."""
        while not self._port_is_open():
            self._pause(deadline, "nothing listens there.")
        time.sleep(min(self._timing.quiet, max(0.0, deadline - time.monotonic())))

    def _port_is_open(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=self._timing.port_timeout).close()
        except OSError:
            return False
        return True

    def _wait_for_picture(self, started: float, deadline: float) -> Ready:
        faults = 0
        while True:
            process = self._supervisor.engine()
            if process.is_gone:
                raise EngineNotReady(f"the engine's process ended. {likely_causes(process)}")
            if process.state == "restarting":  # what answers now will be gone in a moment
                self._pause(deadline, "it is being restarted.")
                continue
            try:
                catalog = self._first_picture(deadline)
                return Ready(catalog, process, time.monotonic() - started)
            except (ConnectionLost, RouteMissing) as error:
                self._check_routes(error, time.monotonic() - started)
                last: WorkerError = error
            except WorkerError as error:
                faults += 1
                if faults >= self._timing.first_picture_attempts:
                    raise EngineNotReady(
                        f"the first picture failed {faults} times: {error}"
                    ) from error
                last = error
            self._pause(deadline, last.message)

    def _first_picture(self, deadline: float) -> Catalog:
        self._webui.loras()  # the last route that A1111 mounts
        log.info("the engine answers and lists %d checkpoints", len(self._webui.sd_models()))
        catalog = self._webui.catalog()
        try:
            self._webui.txt2img(FIRST_PICTURE, timeout=max(1.0, deadline - time.monotonic()))
        except NoCheckpoint:
            log.warning("the engine has no checkpoint yet: only jobs that name one can run")
        return catalog

    def _check_routes(self, error: WorkerError, waited: float) -> None:
        """Our own engine mounts every route before it listens: one that is missing stays so."""
        mounting = not self._supervisor.can_restart or waited < self._timing.route_patience
        if mounting or error.details.get("route") != "loras":
            return
        try:
            self._webui.sd_models()
        except WorkerError:
            raise EngineNotReady(
                f"{error.message} Another program listens at WEBUI_URL, or --api is missing."
            ) from error
        raise CacheDamaged("the engine runs without its LoRA routes.") from error

    def _pause(self, deadline: float, reason: str) -> None:
        if time.monotonic() >= deadline:
            host, port = self._address
            raise EngineNotReady(
                f"no picture from the engine at {host}:{port} in time: {reason}"
                f" {likely_causes(self._supervisor.engine())}"
            )
        if time.monotonic() >= self._next_line:
            log.info("waiting for the engine: %s", reason)
            self._next_line = time.monotonic() + self._timing.ready_log_every
        time.sleep(self._timing.ready_poll)


_BY_STATUS = {
    1: "Exit status 1: the port is in use, config.json or the cache is damaged, or a package is"
    " missing.",
    2: "Exit status 2: a flag in WEBUI_ARGS is not known.",
    126: "Exit status 126: WEBUI_PYTHON cannot be executed.",
    127: "Exit status 127: WEBUI_PYTHON or the engine's folder does not exist.",
    134: "Abort (134): often CUDA and the driver do not fit each other.",
    137: "Killed (137): almost always not enough memory for the checkpoint.",
    139: "Segmentation fault (139): often CUDA, the driver or tcmalloc.",
}


def likely_causes(process: EngineProcess) -> str:
    """One sentence for people: why an engine is not ready, judged by how its process ended."""
    if process.status is not None:
        known = _BY_STATUS.get(process.status, f"Exit status {process.status}.")
        return f"{known} Its last lines above say more."
    if process.state == "running":
        return (
            "Its process runs: the checkpoint is large or the disk slow (raise READY_TIMEOUT),"
            " or CUDA hangs."
        )
    return "Is it started? WEBUI_URL must be its address. `make serve` starts one here."
