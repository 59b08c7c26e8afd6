"""The handler's side of start.sh: is the engine's process there, and please restart it.

start.sh owns the processes. It writes one line into `RUN_DIR/engine` (`running PID`,
`restarting STATUS`, `failed STATUS`), reads what the handler leaves beside it, and is woken by
SIGUSR1. Without start.sh (`ENGINE=external`, or a handler started by hand) nothing is known
about the process, and it cannot be restarted.
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
    """The engine's process as start.sh last saw it.

    Attributes:
        state: `failed` means that nobody will start it again.
        pid: of the process, while it runs.
        status: how it ended, as in a shell's `$?`.
    """

    state: State
    pid: int | None = None
    status: int | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it is known that no engine will answer any more."""
        return self.state == "failed"


UNKNOWN = EngineProcess("unknown")


class Supervisor:
    """Speaks with start.sh through RUN_DIR; `pid` is start.sh's, None where there is none."""

    def __init__(
        self, run_dir: Path, pid: int | None, *, timing: EngineTiming = DEFAULT_TIMING
    ) -> None:
        self._timing = timing
        self._run_dir = run_dir
        self._pid = pid
        self._going: EngineProcess | None = None  # asked to go; start.sh may not have acted yet
        self._going_until = 0.0

    @property
    def can_restart(self) -> bool:
        """Whether there is somebody who restarts an engine."""
        return self._pid is not None and self.engine() != UNKNOWN

    def engine(self) -> EngineProcess:
        """The engine's process right now; one that was asked to go counts as gone at once."""
        found = self._told()
        if found == self._going and time.monotonic() < self._going_until:
            return EngineProcess("restarting")
        return found

    def _told(self) -> EngineProcess:
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
        """Tell start.sh that this process has made a picture: from now on its end is a crash."""
        if engine.pid is not None:
            self._leave("engine.ready", str(engine.pid))

    def request_restart(self, reason: Reason) -> None:
        """Ask for a restart; start.sh takes the engine down, cleans if need be, and starts it."""
        if self._pid is None:
            return
        told = self._told()
        self._going = told if told.state == "running" else None
        self._going_until = time.monotonic() + self._timing.restart_limit
        self._leave("engine.restart", reason)
        os.kill(self._pid, signal.SIGUSR1)

    def _leave(self, name: str, text: str) -> None:
        write_atomically(self._run_dir / name, f"{text}\n")
