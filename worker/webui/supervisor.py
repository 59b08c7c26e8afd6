"""The handler's side of start.sh: the state of the engine's process, and requests to restart it.

start.sh owns the processes. It writes one line into `RUN_DIR/engine` (`running PID`,
`restarting STATUS`, `failed STATUS CAUSE`), reads the files that the handler writes beside it, and
is woken by SIGUSR1. Without start.sh (`ENGINE=external`, or a handler started by hand) the state of
the process is unknown, and it cannot be restarted.

RUN_DIR may be full, read-only or deleted, and its files may contain anything: no failure of a file
ends a job or the handler.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.files import write_atomically
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

State = Literal["running", "restarting", "failed", "unknown"]
# start.sh does not count the last four as failures of the engine; it has the rule.
Reason = Literal[
    "poisoned", "damaged-cache", "hung", "out-of-memory", "bad-model", "replaced-model"
]

_LARGEST_PID = 2**22  # of Linux
_LONGEST_LINE = 1000  # bytes; start.sh writes about 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineProcess:
    """The engine's process as start.sh last reported it.

    Attributes:
        state: `failed` means that start.sh will not start it again.
        pid: its process id, while it runs.
        status: its exit status, as in a shell's `$?`.
        cause: why start.sh does not start it again, in its words.
    """

    state: State
    pid: int | None = None
    status: int | None = None
    cause: str = ""

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that this engine will never answer again."""
        return self.state == "failed"


UNKNOWN = EngineProcess("unknown")
ORPHANED = EngineProcess("failed", cause="start.sh has ended, and its engine with it")


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
        self._last_pid: int | None = None  # of an engine
        self._is_orphan = False

    @property
    def is_supervised(self) -> bool:
        """Whether start.sh runs this handler; it may run no engine."""
        return self._pid is not None

    @property
    def can_restart(self) -> bool:
        """Whether start.sh runs this engine; it once said so, even if RUN_DIR is gone now."""
        is_known = self.engine() != UNKNOWN or self._last_pid is not None
        return self._pid is not None and is_known

    def engine(self) -> EngineProcess:
        """The engine's process now; `restarting` as soon as a restart was requested."""
        reported = self._reported()
        if reported == self._stopping and time.monotonic() < self._stopping_until:
            return EngineProcess("restarting")
        return reported

    def _reported(self) -> EngineProcess:
        if self._pid is None:
            return UNKNOWN
        if self._is_orphan:
            return ORPHANED
        try:
            state, number, *cause = _read(self._run_dir / "engine").split()
            value = int(number)
        except (OSError, ValueError):
            return UNKNOWN
        if state == "running" and 0 < value <= _LARGEST_PID:
            self._last_pid = value
            return EngineProcess("running", pid=value)
        if state in {"restarting", "failed"}:
            return EngineProcess(
                "failed" if state == "failed" else "restarting",
                status=value,
                cause=" ".join(cause),
            )
        return UNKNOWN

    def mark_ready(self, engine: EngineProcess) -> None:
        """Report to start.sh that this process made a picture: from now on its end is a crash."""
        if engine.pid is not None:
            self._note("engine.ready", str(engine.pid))

    def note_checkpoint(self, checkpoint: str) -> None:
        """Have start.sh make this checkpoint the engine's default before each later start."""
        if self._pid is not None:
            self._note("engine.checkpoint", checkpoint)

    def _note(self, name: str, text: str) -> None:
        try:
            self._write(name, text)
        except OSError as error:
            log.warning(
                "RUN_DIR=%s cannot be written (%s): start.sh is not told what the next start of the"
                " engine needs",
                self._run_dir,
                error.strerror or error,
            )

    def request_restart(self, reason: Reason) -> None:
        """Ask for a restart: start.sh stops the engine, removes a damaged cache, and starts it.

        If start.sh cannot be asked, the engine is killed: start.sh then sees its end.
        """
        if self._pid is None or self._is_orphan:
            return
        reported = self._reported()
        self._stopping = reported if reported.state == "running" else None
        self._stopping_until = time.monotonic() + self._timing.restart_limit
        try:
            self._write("engine.restart", reason)
            os.kill(self._pid, signal.SIGUSR1)
        except OSError as error:
            log.warning(
                "start.sh cannot be asked for a restart (%s): the engine is killed",
                error.strerror or error,
            )
            self._kill_engine()

    def follow_start_sh(self) -> bool:
        """Wait until start.sh has ended, and kill its engine; False at once without start.sh.

        It was killed, or it would have stopped this process first.
        """
        if self._pid is None:
            return False
        while os.getppid() == self._pid:
            time.sleep(self._timing.watch_every)
        self._reported()  # notes the engine's process
        self._is_orphan = True
        log.error("start.sh has ended: this worker stops its engine and ends")
        self._kill_engine()
        return True

    def _kill_engine(self) -> None:
        if self._last_pid is not None:
            with suppress(OSError):  # it is gone already
                os.killpg(self._last_pid, signal.SIGKILL)

    def _write(self, name: str, text: str) -> None:
        write_atomically(self._run_dir / name, f"{text}\n")


def _read(path: Path) -> str:
    """A short file's text; what is not a regular file cannot block the reader."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(number, _LONGEST_LINE).decode()
    finally:
        os.close(number)
