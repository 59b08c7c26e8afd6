"""The engine's process over a worker's life: booted, proven by a first picture, restarted.

`worker.webui.engine_state` has the states and their tables; this module reports the events.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from worker.config.webui_config import OVERRIDABLE
from worker.errors import CacheDamaged, EngineFault, EngineNotReady, EnginePoisoned, WorkerError
from worker.generation.catalog import Catalog
from worker.generation.payload import LIVE_PREVIEWS
from worker.webui.checkpoint_memory import OPTION, CheckpointMemory
from worker.webui.client import WebUI
from worker.webui.engine_state import EngineState, Event, Process
from worker.webui.readiness import Readiness, Ready
from worker.webui.supervisor import EngineProcess, Reason, Supervisor
from worker.webui.timing import EngineTiming

# A1111 sets these itself when it loads a checkpoint.
_OF_CHECKPOINT = {"sd_model_checkpoint", "sd_checkpoint_hash"}

log = logging.getLogger(__name__)


class Lifecycle:
    """One engine's process, and the state of its client. Thread-safe.

    Attributes:
        catalog: the names that a job may use; known after `boot`.
        retiring: why only a new worker can help; empty while this one is good.
        restarts: how often a new process took the place of a proven one.
        default_checkpoint: the one of the last first picture; of jobs that name none.
        memory: decides how many checkpoints the engine keeps; None: its own option is left alone.
        first_pictures: how many were made; the models that were loaded before are not any more.
    """

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        readiness: Readiness,
        timing: EngineTiming,
        memory: CheckpointMemory | None = None,
    ) -> None:
        self.catalog = Catalog({}, {})
        self.retiring = ""
        self.restarts = 0
        self.default_checkpoint: str | None = None
        self.first_pictures = 0
        self.memory = memory
        self._webui = webui
        self._supervisor = supervisor
        self._readiness = readiness
        self._timing = timing
        self._boot_timeout = 0.0
        self._restart_is_ours = False  # the process that comes next was asked for
        self._options: dict[str, Any] = {}  # of the engine when it had made its first picture
        self._proving = threading.Lock()  # held while a first picture is made
        self._lock = threading.Lock()  # held briefly, to change the two below
        self._state = EngineState()
        self._proven: EngineProcess | None = None  # the process that made the last first picture

    @property
    def state(self) -> EngineState:
        """The client's state, as of the last event."""
        return self._state

    def report(self, event: Event) -> EngineState:
        """Enter the state that follows this event; from any thread."""
        with self._lock:
            self._state = self._state.after(event)
            if event is Event.OUT_OF_MEMORY and self.memory and self.memory.on_cpu:
                self.memory.ran_out()  # on a GPU, only one checkpoint is in its memory
            return self._state

    def retire(self, reason: str) -> None:
        """Have this worker replaced after the job; the newest reason is shown."""
        self.retiring = reason
        log.warning("this worker is to be replaced: %s", reason)

    @property
    def may_keep_several(self) -> bool:
        """Whether the engine's own option lets it keep several checkpoints in memory."""
        limit = self._options.get(OPTION)
        return isinstance(limit, int | float) and limit > 1  # A1111 answers 2.0

    # Readiness -------------------------------------------------------------------------------

    def boot(self, timeout: float) -> None:
        """Wait until the engine can generate; a damaged cache is repaired once.

        Raises:
            EngineNotReady, CacheDamaged: the worker must not take jobs.
        """
        self._boot_timeout = timeout
        try:
            self.wait_until_ready(timeout)
        except CacheDamaged as error:
            self.restart("damaged-cache", error)
            self.wait_until_ready(timeout)
        if not self._supervisor.can_restart:
            self._pin_options()

    def _pin_options(self) -> None:
        """Write the options that a job can override into an external engine's own config.json.

        A1111 saves an option that is set, even to the value that it has.
        `worker.config.webui_config` explains why each must be in the file.
        """
        options = self._webui.options()
        keys = [key for key in (*OVERRIDABLE, LIVE_PREVIEWS) if key in options]
        self._webui.set_options({key: options[key] for key in keys})

    def keep_ready(self) -> None:
        """Have a restarted engine make its first picture before the next job; runs in a thread.

        Otherwise the next job would wait for it, and start.sh would treat the engine's next crash
        as a failed boot. Returns only without start.sh: RUN_DIR may be unreadable for a while.
        """
        while self._supervisor.is_supervised:
            time.sleep(self._timing.watch_every)
            if not self.is_proven() and self.process().state == "running":
                with suppress(WorkerError):  # the next job meets the same error and reports it
                    self.wait_until_ready(self._boot_timeout)

    def process(self) -> EngineProcess:
        """The engine's process as start.sh reports it now."""
        return self._supervisor.engine()

    def is_proven(self) -> bool:
        """Whether the process that start.sh reports now has made a first picture."""
        with self._lock:  # also while reading: an older report must not overwrite a newer one
            same = self.process() == self._proven
            self._state = self._state.after(Event.SAME_PROCESS if same else Event.OTHER_PROCESS)
            return self._state.process is Process.PROVEN

    def wait_until_ready(self, timeout: float, *, again: bool = False) -> None:
        """Wait for a first picture; at once if the process has made one, unless `again` is set.

        Raises:
            EngineNotReady: there was none in time, or the process has ended for good.
            CacheDamaged: the engine's cache must be removed.
        """
        if not self._proving.acquire(timeout=timeout):
            raise EngineNotReady("the engine was restarted and has made no picture yet.")
        try:
            if self.is_proven() and not again:
                return
            ready = self._readiness.wait(timeout)
            self.catalog = ready.catalog
            self.default_checkpoint = ready.checkpoint
            self.first_pictures += 1
            if ready.process != self._proven or not self._options:
                self._decide_memory(ready)
                with suppress(WorkerError):  # a picture does not depend on them
                    self._options = self._webui.options()
            with self._lock:
                self.restarts += self._proven is not None and ready.process != self._proven
                self._proven = ready.process
                self._state = self._state.after(Event.FIRST_PICTURE)
            log.info("ready: the first picture was made after %.1f s", ready.seconds)
        finally:
            self._proving.release()

    def _decide_memory(self, ready: Ready) -> None:
        """Decide how many checkpoints this new process keeps; it has loaded only its default."""
        if self.memory is None:
            return
        if self._proven is not None and not self._restart_is_ours:
            self.memory.ran_out()  # perhaps: a killed process does not say why
        self._restart_is_ours = False
        self.memory.begin(ready.checkpoint, self._listed_parts())
        self.apply_memory()

    def _listed_parts(self) -> list[str]:
        """What the engine says that it can do beyond A1111."""
        with suppress(WorkerError, TypeError):  # 404 of an A1111 without the worker's extension
            return [str(part) for part in self._webui.get("worker-parts")]
        return []

    def apply_memory(self) -> None:
        """Set the engine's option to the limit, unless it has that value."""
        if self.memory is None:
            return
        with suppress(WorkerError):  # the engine keeps its limit; a picture does not depend on it
            if self._webui.options().get(OPTION) != self.memory.limit:
                self._webui.set_options({OPTION: self.memory.limit})
            self._options |= {OPTION: self.memory.limit}

    def make_room(self, checkpoints: Collection[str]) -> None:
        """Lower the limit if these checkpoints, which the next picture needs, do not fit."""
        if self.memory and self.memory.before(checkpoints):
            self.apply_memory()

    def read_embeddings(self) -> None:
        """Let the engine read its embeddings again; in a thread, as `read_folders`."""
        self._webui.refresh_embeddings()
        self.report(Event.EMBEDDINGS_READ)

    def read_folders(self) -> None:
        """Let the engine read its model folders again.

        The report is made in the thread: a job that is late or cancelled must not lose it.
        """
        self.report(Event.REFRESH_STARTED)
        outcome = Event.REFRESH_FAILED
        try:
            self._webui.refresh()
            outcome = Event.REFRESH_DONE
        finally:
            self.report(outcome)

    def listed_loras(self) -> list[dict[str, Any]] | None:
        """What the engine lists; None if it cannot: odd metadata of one LoRA give a 500 in A1111.

        The job's own LoRAs are proven by the picture, too.
        """
        try:
            return self._webui.loras()
        except EngineFault as error:
            log.warning("the engine cannot list its LoRAs: %s", error)
            return None

    def restore_options(self) -> None:
        """Set the options back that a script has changed, and not restored.

        Raises:
            EnginePoisoned: that is impossible.
        """
        try:
            now = self._webui.options()
            changed = {
                name: value
                for name, value in self._options.items()
                if name not in _OF_CHECKPOINT and now.get(name, value) != value
            }
            if changed:
                log.warning("a script changed the engine's options, set back: %s", [*changed])
                self._webui.set_options(changed)
        except EngineFault as error:
            raise EnginePoisoned(f"the options that a script changed remain: {error}") from error
        self.report(Event.OPTIONS_RESTORED)

    def note_checkpoint(self, checkpoint: str | None) -> None:
        """Make this checkpoint, which has made a picture, the default if the engine has none."""
        if self.default_checkpoint is None and checkpoint is not None:
            self.default_checkpoint = checkpoint
            self._supervisor.note_checkpoint(checkpoint)

    # Restart ---------------------------------------------------------------------------------

    def request_restart(self, reason: Reason) -> None:
        """Ask start.sh for a new process; the next job waits for its first picture."""
        self.report(Event.RESTART_REQUESTED)
        self._restart_is_ours = True
        if self._supervisor.can_restart:
            self._supervisor.request_restart(reason)
        else:
            self.retire(f"start.sh does not run this engine: restart it yourself ({reason})")

    def restart(self, reason: Reason, error: WorkerError) -> None:
        """Ask start.sh for a new process, and wait until the old one is gone.

        Raises:
            WorkerError: the given one, if start.sh does not run this engine.
        """
        if not self._supervisor.can_restart:
            self.retire(f"this engine cannot be restarted after {error.code}")
            raise error
        self._replace(reason)

    def replace_outdated(self) -> None:
        """Have a new process load the files that were replaced; an external one is only named."""
        if self._supervisor.can_restart:
            self._replace("replaced-model")
            return
        self.report(Event.RESTART_REQUESTED)
        log.warning("a model file was replaced: restart the engine, it has the old one")

    def _replace(self, reason: Reason) -> None:
        before = self.process()
        self.request_restart(reason)
        give_up = time.monotonic() + self._timing.restart_patience
        while self.process() == before and time.monotonic() < give_up:
            time.sleep(self._timing.stop_poll)

    def end_with_start_sh(self) -> None:
        """End this process when start.sh has ended; for a thread that runs from the beginning.

        The job that runs fails, and the SDK may still report it; then this process is killed.
        """
        if not self._supervisor.follow_start_sh():
            return
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._timing.orphan_grace)
        os.kill(os.getpid(), signal.SIGKILL)

    def give_up_on_hung(self) -> None:
        """Request a restart, because the engine neither stops nor answers."""
        log.warning("the engine does not answer for %g s: restart", self._timing.stop_patience)
        self.request_restart("hung")
