"""The handler's side of start.sh: the state of the engine's process, and requests to restart it.

start.sh owns the processes. It writes one line into `RUN_DIR/engine` (`running PID`,
`restarting STATUS`, `failed STATUS`), reads the files that the handler writes beside it, and is
woken by SIGUSR1. Without start.sh (`ENGINE=external`, or a handler started by hand) the state of
the process is unknown, and it cannot be restarted.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.files import write_atomically
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

State = Literal["running", "restarting", "failed", "unknown"]
Reason = Literal["poisoned", "hung", "out-of-memory", "damaged-cache"]


@dataclass(frozen=True)
class EngineProcess:
    """The engine's process as start.sh last reported it.

    Attributes:
        state: `failed` means that start.sh will not start it again.
        pid: its process id, while it runs.
        status: its exit status, as in a shell's `$?`.
    """

    state: State
    pid: int | None = None
    status: int | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that this engine will never answer again."""
        return self.state == "failed"


UNKNOWN = EngineProcess("unknown")


class Supervisor:
    """Exchanges files with start.sh in RUN_DIR.

    Args:
        run_dir: the folder.
        pid: process id of start.sh; None without it.
    """

    def __init__(
        self, run_dir: Path, pid: int | None, *, timing: EngineTiming = DEFAULT_TIMING
    ) -> None:
        self._run_dir = run_dir
        self._pid = pid
        self._timing = timing
        self._stopping: EngineProcess | None = None  # start.sh may still report it as running
        self._stopping_until = 0.0

    @property
    def can_restart(self) -> bool:
        """Whether start.sh runs this engine."""
        return self._pid is not None and self.engine() != UNKNOWN

    def engine(self) -> EngineProcess:
        """The engine's process now; `restarting` as soon as a restart was requested."""
        reported = self._reported()
        if reported == self._stopping and time.monotonic() < self._stopping_until:
            return EngineProcess("restarting")
        return reported

    def _reported(self) -> EngineProcess:
        if self._pid is None:
            return UNKNOWN
        try:
            state, number = (self._run_dir / "engine").read_text().split()
        except (FileNotFoundError, ValueError):
            return UNKNOWN
        if state == "running":
            return EngineProcess("running", pid=int(number))
        return EngineProcess("failed" if state == "failed" else "restarting", status=int(number))

    def mark_ready(self, engine: EngineProcess) -> None:
        """Report to start.sh that this process made a picture: from now on its end is a crash."""
        if engine.pid is not None:
            self._write("engine.ready", str(engine.pid))

    def request_restart(self, reason: Reason) -> None:
        """Ask for a restart: start.sh stops the engine, removes a damaged cache, and starts it."""
        if self._pid is None:
            return
        reported = self._reported()
        self._stopping = reported if reported.state == "running" else None
        self._stopping_until = time.monotonic() + self._timing.restart_limit
        self._write("engine.restart", reason)
        os.kill(self._pid, signal.SIGUSR1)

    def _write(self, name: str, text: str) -> None:
        write_atomically(self._run_dir / name, f"{text}\n")
