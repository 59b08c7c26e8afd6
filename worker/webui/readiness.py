"""Readiness: the engine has made a picture.

An open port or a 200 from a route is not enough: A1111 gives both while its model is still
loading, and another program may use the port. So the last check is a real txt2img, which also
warms the engine up.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker.config.gpu import ON_THE_CPU
from worker.config.gpus import SMALLEST_GPU
from worker.errors import (
    CacheDamaged,
    ConnectionLost,
    EngineFault,
    EngineNotReady,
    GpuNotUsed,
    NoCheckpoint,
    RouteMissing,
    WorkerError,
)
from worker.generation import answers
from worker.generation.answers import reading
from worker.generation.catalog import Catalog
from worker.webui.client import WebUI
from worker.webui.supervisor import EngineProcess, Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

log = logging.getLogger(__name__)

_NO_CUDA = {"error": "unavailable"}  # other errors only mean that the figures are not available
EXIT_NO_GPU = 71  # of the embedded engine
FIRST_PICTURE = {"prompt": "", "steps": 1, "width": 64, "height": 64, "seed": 1}


@dataclass(frozen=True)
class Ready:
    """An engine that can generate.

    Attributes:
        catalog: the names that a job may use.
        process: the process that made the picture.
        seconds: the wait until the picture was made.
        checkpoint: the one of that picture; None if the engine has none.
    """

    catalog: Catalog
    process: EngineProcess
    seconds: float
    checkpoint: str | None = None


class Readiness:
    """Waits for one engine, until a deadline.

    Args:
        webui: its API.
        supervisor: reports its process.
        address: its host and port.
        needs_gpu: an engine that does not use CUDA is a fault.
        timing: the waits.
        clock: returns seconds; tests pass their own.
        sleep: waits for seconds; tests pass their own.
    """

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        address: tuple[str, int],
        *,
        needs_gpu: bool = False,
        timing: EngineTiming = DEFAULT_TIMING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._webui = webui
        self._supervisor = supervisor
        self._address = address
        self._needs_gpu = needs_gpu
        self._timing = timing
        self._clock = clock
        self._sleep = sleep
        self._next_line = 0.0  # when the next "waiting" line may be logged
        self._line_every = 0.0

    def wait(self, timeout: float) -> Ready:
        """Block until the engine has made a picture.

        Raises:
            EngineNotReady: the process ended, or the timeout passed; names the likely causes.
            GpuNotUsed: the engine computes on the CPU, and must not.
            CacheDamaged: only the LoRA routes are missing: the cache must be removed.
        """
        started = self._clock()
        deadline = started + timeout
        self._line_every = self._timing.ready_log_every
        self._next_line = started + self._line_every
        if not self._supervisor.can_restart:
            self._wait_for_port(deadline)
        ready = self._wait_for_picture(started, deadline)
        self._supervisor.mark_ready(ready.process)
        if ready.checkpoint:
            self._supervisor.note_checkpoint(ready.checkpoint)
        return ready

    def what_answers(self) -> str:
        """A hint for a missing route: whether the WebUI answers at all."""
        try:
            models = self._webui.sd_models()
        except WorkerError:
            return "The program at WEBUI_URL is not the WebUI's API. Check WEBUI_URL."
        return f"The WebUI's API answers and lists {len(models)} checkpoints, but not this route."

    def _wait_for_port(self, deadline: float) -> None:
        """For an engine not started by start.sh: no HTTP until its port was open for a while."""
        while not self._port_is_open():
            self._pause(deadline, "no program listens there.")
        self._sleep(min(self._timing.quiet, max(0.0, deadline - self._clock())))

    def _port_is_open(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=self._timing.port_timeout).close()
        except OSError:
            return False
        return True

    def _wait_for_picture(self, started: float, deadline: float) -> Ready:
        faults = 0
        listed: list[str] = []
        while True:
            process = self._supervisor.engine()
            if process.is_gone:
                kind = GpuNotUsed if process.status == EXIT_NO_GPU else EngineNotReady
                raise kind(f"the engine's process ended. {likely_causes(process)}")
            if process.state == "restarting":  # an answer would come from the old process
                self._pause(deadline, "it is being restarted.")
                continue
            try:
                catalog, listed = self._answers()
                self._check_gpu()
                checkpoint = self._first_picture(deadline, faults, listed)
                return Ready(catalog, process, self._clock() - started, checkpoint)
            except GpuNotUsed:
                raise
            except (ConnectionLost, RouteMissing) as error:
                self._check_routes(error, self._clock() - started)
                last: WorkerError = error
            except WorkerError as error:
                faults += 1
                if faults >= self._attempts(listed):
                    raise EngineNotReady(
                        f"the first picture failed {faults} times: {error}"
                    ) from error
                last = error
            self._pause(deadline, last.message, until_port=isinstance(last, ConnectionLost))

    def _answers(self) -> tuple[Catalog, list[str]]:
        """What the engine can do, and the checkpoints that it lists."""
        with suppress(EngineFault):  # mounted: one LoRA's metadata that are not JSON give a 500
            self._webui.loras()  # the last route that A1111 mounts
        listed = [str(model.get("model_name")) for model in self._webui.sd_models()]
        return self._webui.catalog(), listed

    def _check_gpu(self) -> None:
        """Before the first picture: A1111 without CUDA computes on the CPU, without an error."""
        if not self._needs_gpu:
            return
        total = check_gpu(self._webui.memory())
        if total is None:
            return
        log.info("the engine uses a GPU with %d MiB of memory", total)
        if total < SMALLEST_GPU:  # of a MIG slice, nvidia-smi did not know it
            log.warning(
                "the GPU has %d MiB of memory, and SD1 needs %d MiB: use a larger GPU or MIG slice;"
                " A1111 also runs with WEBUI_ARGS=--lowvram, slowly",
                total,
                SMALLEST_GPU,
            )

    def _attempts(self, listed: Sequence[str]) -> int:
        others = min(len(listed), self._timing.first_picture_checkpoints)
        return max(self._timing.first_picture_attempts, 1 + others)

    def _first_picture(self, deadline: float, faults: int, listed: Sequence[str]) -> str | None:
        """Make it, the first time with the default checkpoint, then with each of the others.

        Returns:
            The name of its checkpoint, which then is the engine's default.
        """
        timeout = max(1.0, deadline - self._clock())
        # Without a name in config.json the default is the first in the list: it comes last.
        others = [None, *listed[1:], *listed[:1]]
        other = others[faults] if faults < len(others) else None
        body: dict[str, Any] = FIRST_PICTURE
        if other is not None:
            body = body | {"override_settings": {"sd_model_checkpoint": other}}
        try:
            answer = self._webui.draw("txt2img", body, timeout=timeout)
        except NoCheckpoint:
            log.warning("the engine has no checkpoint yet: only jobs that name one can run")
            return None
        log.info("the engine answers and lists %d checkpoints", len(listed))
        name: str | None = answer.facts.get("sd_model_name")
        if other is not None and name:
            log.warning("the engine's default checkpoint cannot be used: %r is used instead", name)
            with suppress(WorkerError):  # then only jobs that name a checkpoint can run
                self._webui.set_options({"sd_model_checkpoint": name})
        return name

    def _check_routes(self, error: WorkerError, waited: float) -> None:
        """Raise an error for a route that will not appear.

        An engine of start.sh mounts all routes before it listens.
        """
        mounting = not self._supervisor.can_restart or waited < self._timing.route_patience
        if mounting or error.details.get("route") != "loras":
            return
        try:
            self._webui.sd_models()
        except WorkerError:
            raise EngineNotReady(
                f"{error.message} Another program listens at WEBUI_URL, or the engine runs without"
                " --api."
            ) from error
        raise CacheDamaged("the engine answers, but its LoRA routes are missing.") from error

    def _pause(self, deadline: float, reason: str, *, until_port: bool = False) -> None:
        """Sleep until the next attempt; with `until_port` only until the engine listens."""
        if self._clock() >= deadline:
            host, port = self._address
            raise EngineNotReady(
                f"the engine at {host}:{port} made no picture in time: {reason}"
                f" {likely_causes(self._supervisor.engine())}"
            )
        if self._clock() >= self._next_line:
            log.info("waiting for the engine: %s", reason)
            self._line_every *= 2
            self._next_line = self._clock() + self._line_every
        looks = round(self._timing.ready_poll / self._timing.port_poll) if until_port else 1
        for _ in range(max(1, looks)):
            self._sleep(self._timing.port_poll if until_port else self._timing.ready_poll)
            if until_port and (self._port_is_open() or self._clock() >= deadline):
                return


def check_gpu(memory: Mapping[str, Any]) -> int | None:
    """The GPU's memory in MiB, from the engine's answer to GET /memory; None if it has no figure.

    Raises:
        GpuNotUsed: the engine does not use CUDA.
    """
    with reading("memory"):
        cuda = answers.an_object(memory["cuda"], "cuda")
        if cuda == _NO_CUDA:
            raise GpuNotUsed(
                "the engine cannot use CUDA and would compute on the CPU, although this machine has"
                " a GPU.",
                hint="Use another machine or repair its driver (the engine's log above may name the"
                f" reason), or {ON_THE_CPU}.",
            )
        system = cuda.get("system")
        return round(answers.number(system, "total") / 2**20) if system else None


_BY_STATUS = {
    1: "Exit status 1: the port is in use, config.json or the cache is damaged, or a package is"
    " missing.",
    EXIT_NO_GPU: f"Exit status {EXIT_NO_GPU}: the engine cannot use the GPU.",
    2: "Exit status 2: WEBUI_ARGS has an unknown flag.",
    126: "Exit status 126: WEBUI_PYTHON cannot be executed.",
    127: "Exit status 127: WEBUI_PYTHON or the engine's folder does not exist.",
    134: "Aborted (134): often CUDA and the driver do not match.",
    137: "Killed (137): almost always not enough memory for the checkpoint.",
    139: "Segmentation fault (139): often caused by CUDA, the driver or tcmalloc.",
}


def likely_causes(process: EngineProcess) -> str:
    """Why an engine may not be ready, in words, from the state of its process."""
    why_no_restart = f"{process.cause[:1].upper()}{process.cause[1:]}. " * bool(process.cause)
    if process.status or (process.status is not None and not why_no_restart):
        cause = _BY_STATUS.get(process.status, f"Exit status {process.status}.")
        return f"{why_no_restart}{cause} See the engine's last log lines above."
    if why_no_restart:  # status 0: start.sh ended the process itself
        return why_no_restart.strip()
    if process.state == "running":
        return (
            "Its process is running: the checkpoint is large or the disk is slow (raise"
            " READY_TIMEOUT), or CUDA hangs."
        )
    return "Check that it was started and that WEBUI_URL is its address (`make serve` starts one)."
