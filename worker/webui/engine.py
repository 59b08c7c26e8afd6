"""The engine as the handler uses it: a payload goes in, a proven picture comes out.

`worker.webui.recovery` decides what follows a failure; here it is done. Whoever stops waiting for a
POST first makes sure that nothing runs in the engine any more, so no job is ever sent twice
while it may still run, and no job queues behind a ghost.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from worker.errors import (
    CacheDamaged,
    EngineNotReady,
    OutOfMemory,
    RouteMissing,
    WorkerError,
)
from worker.stopwatch import Stopwatch
from worker.webui import picture, proof, recovery
from worker.webui.catalog import Catalog
from worker.webui.client import Txt2ImgAnswer, WebUI, of_generation
from worker.webui.config_json import OVERRIDABLE
from worker.webui.payload import LIVE_PREVIEWS, Expected, Payload, has_previews, smaller, throwaway
from worker.webui.readiness import Readiness
from worker.webui.recovery import Action, After, MemoryGrowth
from worker.webui.supervisor import EngineProcess, Reason, Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

Tell = Callable[[Mapping[str, Any]], None]

log = logging.getLogger("worker.engine")


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it also when this job is cancelled meanwhile: the next one must not meet a ghost.

    Raises:
        asyncio.CancelledError: afterwards.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


class Engine:
    """One engine. Not for concurrent use: the caller lets one job in at a time.

    Attributes:
        catalog: the names that a job may use; known after `boot`.
        retiring: why only a new worker can help; empty while this one is good.
        restarts: how often the engine was replaced by a new process.
    """

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        readiness: Readiness,
        memory_growth: MemoryGrowth | None = None,
        *,
        timing: EngineTiming = DEFAULT_TIMING,
    ) -> None:
        self._timing = timing
        self._memory_growth = memory_growth
        self._webui = webui
        self._supervisor = supervisor
        self._readiness = readiness
        self.catalog = Catalog({}, {})
        self.retiring = ""
        self.restarts = 0
        self._boot_timeout = 0.0
        self._proving = threading.Lock()
        self._proven: EngineProcess | None = None  # the process that made the last first picture
        self._seen: EngineProcess | None = None  # the same, also when it is out of favour
        self._loaded: str | None = None  # the checkpoint of the last picture
        self._must_refresh = False
        self._must_clear = False
        self._out_of_memory_in_a_row = 0
        self._hashes: dict[str, str] = {}

    # Readiness -------------------------------------------------------------------------------

    def boot(self, timeout: float) -> None:
        """Wait until the engine can generate; a damaged cache is repaired once.

        Raises:
            EngineNotReady, CacheDamaged: there is no point in taking jobs.
        """
        self._boot_timeout = timeout
        try:
            self._wait_until_ready(timeout)
        except CacheDamaged as error:
            self._restart("damaged-cache", error)
            self._wait_until_ready(timeout)
        if not self._supervisor.can_restart:
            self._pin_options()

    def _pin_options(self) -> None:
        """Pin the options of an engine whose config.json is not ours.

        `worker.webui.config_json` gives the reason.

        Setting an option to the value it has changes nothing but where A1111 keeps it.
        """
        options = self._webui.options()
        keys = [key for key in (*OVERRIDABLE, LIVE_PREVIEWS) if key in options]
        self._webui.set_options({key: options[key] for key in keys})

    def keep_ready(self) -> None:
        """Prove a restarted engine also while no job comes; runs for ever, in a thread.

        Else an engine that crashed while idle would be warmed up by the next job, and start.sh
        would take its next crash for one that never became ready.
        """
        while self._supervisor.can_restart:
            time.sleep(self._timing.watch_every)
            if not self._is_proven() and self._supervisor.engine().state == "running":
                with suppress(WorkerError):  # the next job meets it again, and reports it
                    self._wait_until_ready(self._boot_timeout)

    def health(self) -> dict[str, Any]:
        """The engine's process, whether it can generate, its checkpoint and its memory."""
        memory: dict[str, Any] = {}
        with suppress(WorkerError):  # where it does not answer, that is the news
            memory = self._webui.memory()
        return {
            "state": self._supervisor.engine().state,
            "ready": self._is_proven() and bool(memory),
            "checkpoint": self._loaded,
            "restarts": self.restarts,
            "retiring": self.retiring or None,
            "memory": memory or None,
        }

    def _wait_until_ready(self, timeout: float, *, again: bool = False) -> None:
        """Nothing to do while the process that made the last first picture lives."""
        if not self._proving.acquire(timeout=timeout):
            raise EngineNotReady("the engine was restarted and has made no picture yet.")
        try:
            if self._is_proven() and not again:
                return
            ready = self._readiness.wait(timeout)
            self.catalog = ready.catalog
            self.restarts += self._seen is not None and ready.process != self._seen
            self._proven = self._seen = ready.process
            # `_must_refresh` stays: models may have come after it had listed its folders.
            log.info("ready: the first picture came after %.1f s", ready.seconds)
        finally:
            self._proving.release()

    def _is_proven(self) -> bool:
        return self._proven is not None and self._supervisor.engine() == self._proven

    # Generation ------------------------------------------------------------------------------

    def models_changed(self) -> None:
        """Let the engine read its folders before the next picture."""
        self._must_refresh = True

    async def generate(self, payload: Payload, stopwatch: Stopwatch, tell: Tell) -> Txt2ImgAnswer:
        """Generate and prove, with at most `recovery.MAX_ATTEMPTS` attempts.

        Args:
            payload: the job as the engine takes it.
            stopwatch: its deadline.
            tell: hears how far it is, see `worker.service.progress`.

        Raises:
            WorkerError: of the last attempt; `attempts` in its details says how many there were.
            asyncio.CancelledError: after the engine has stopped.
        """
        failures: list[WorkerError] = []
        while True:
            try:
                async with self._followed(tell, preview=has_previews(payload.body)):
                    answer = await self._attempt(payload, stopwatch)
            except WorkerError as error:
                error.details["attempts"] = len(failures) + 1
                await self._recover(error, failures, payload, stopwatch)
                failures.append(error)
            else:
                self._out_of_memory_in_a_row = 0
                await self._note_loaded(answer.facts.get("sd_model_name"))
                return answer

    async def _note_loaded(self, checkpoint: str | None) -> None:
        """Remember the checkpoint; after a switch, look what it has cost."""
        switched = self._loaded is not None and checkpoint != self._loaded
        self._loaded = checkpoint
        if not switched or not self._memory_growth:
            return
        with suppress(WorkerError):  # the picture is there
            memory = await asyncio.to_thread(self._webui.memory)
            process = self._supervisor.engine().pid
            self._retire(self._memory_growth.after_switch(process, memory["ram"]["used"]))

    async def checkpoint_sha256(self, name: str) -> str | None:
        """SHA-256 of a checkpoint that the engine has loaded; None where it does not say."""
        if name not in self._hashes:
            # The picture is there already: it must not be lost over its models' hashes.
            with suppress(WorkerError):
                listed = await asyncio.to_thread(self._webui.sd_models)
                self._hashes |= {m["model_name"]: m["sha256"] for m in listed if m.get("sha256")}
        return self._hashes.get(name)

    async def _attempt(self, payload: Payload, stopwatch: Stopwatch) -> Txt2ImgAnswer:
        if not self._is_proven():
            await asyncio.to_thread(self._wait_until_ready, stopwatch.left())
        if self._must_refresh:
            # Before: the next job's models may come while the engine reads its folders.
            self._must_refresh = False
            await asyncio.to_thread(self._refresh, payload.expected)
        if self._must_clear:
            await self._post(throwaway(payload.body), stopwatch)
            self._must_clear = False
        answer = await self._post(payload.body, stopwatch)
        proof.check(answer.facts, answer.images, payload.expected)
        if payload.expected.embeddings:
            listed = await asyncio.to_thread(self._webui.embeddings)
            proof.check_embeddings(listed, payload.expected)
        return answer

    @asynccontextmanager
    async def _followed(self, tell: Tell, *, preview: bool) -> AsyncIterator[None]:
        """Tell how far the engine is while the body runs."""
        following = asyncio.create_task(self._follow(tell, preview=preview))
        try:
            yield
        finally:
            following.cancel()

    async def _follow(self, tell: Tell, *, preview: bool) -> None:
        for look in itertools.count(1):
            await asyncio.sleep(self._timing.progress_every)
            with suppress(WorkerError):
                report = await asyncio.to_thread(self._look, preview=preview)
                tell(report)
                if look % self._timing.progress_per_log_line == 0:
                    log.info("%s", report.get("message", report["phase"]))

    def _look(self, *, preview: bool) -> dict[str, Any]:
        answer = self._webui.progress(preview=preview)
        image = answer.get("current_image")
        small = picture.thumbnail(image) if preview and image else None
        return of_generation(answer) | ({"preview": small} if small else {})

    def _refresh(self, expected: Expected) -> None:
        """Let the engine read its folders, and check that it sees what the job needs."""
        try:
            self._webui.refresh()
        except WorkerError:
            self._must_refresh = True
            raise
        proof.check_listed(self._webui.sd_models(), self._webui.loras(), expected)

    async def _post(self, body: Mapping[str, Any], stopwatch: Stopwatch) -> Txt2ImgAnswer:
        if not stopwatch.left():
            raise stopwatch.expired("no picture")
        # The deadline is kept here and not by the socket: the POST must live until the engine
        # has stopped, because its end is the best sign of that.
        patience = stopwatch.left() + 2 * self._timing.stop_patience
        posted = asyncio.ensure_future(asyncio.to_thread(self._webui.txt2img, body, patience))
        try:
            done, _ = await asyncio.wait({posted}, timeout=stopwatch.left())
        except asyncio.CancelledError:
            await _to_its_end(self._stop(posted))
            raise
        if not done:
            await _to_its_end(self._stop(posted))
            raise stopwatch.expired("no picture")
        return posted.result()

    async def _stop(self, posted: asyncio.Future[Txt2ImgAnswer]) -> None:
        """Interrupt until the POST returns; its partial picture is dropped."""
        # Nobody awaits it any more: its exception must be taken, or asyncio complains later.
        posted.add_done_callback(lambda future: future.cancelled() or future.exception())
        give_up = time.monotonic() + self._timing.stop_patience
        while not posted.done() and time.monotonic() < give_up:
            # A1111 forgets an interrupt that comes before the job has begun: say it again.
            with suppress(WorkerError):
                await asyncio.to_thread(self._webui.interrupt)
            await asyncio.wait({posted}, timeout=self._timing.stop_poll)
        if not posted.done():
            self._give_up_on_hung()

    # Recovery --------------------------------------------------------------------------------

    async def _recover(
        self,
        error: WorkerError,
        earlier: list[WorkerError],
        payload: Payload,
        stopwatch: Stopwatch,
    ) -> None:
        """Clear the way for the next attempt, or raise the error."""
        timed_out = not stopwatch.left() and not self._supervisor.engine().is_gone
        if isinstance(error, EngineNotReady) and timed_out:
            # The engine may well be ready a moment later: no reason to replace the worker.
            raise stopwatch.expired(f"{error.message.rstrip('.')}; no picture") from error
        decision = self._decide(error, earlier, payload)
        if decision.action is Action.FAIL or timed_out:
            await self._conclude(error, decision.after, payload)
            raise error
        log.warning("attempt %d: %s -> %s", len(earlier) + 1, error, decision.action.value)
        await self._act(decision.action, error)

    async def _act(self, action: Action, error: WorkerError) -> None:
        if action is Action.AWAIT_ROUTE:
            await asyncio.sleep(self._timing.route_wait)
            with suppress(EngineNotReady, CacheDamaged):
                await asyncio.to_thread(
                    self._wait_until_ready, self._timing.route_recheck, again=True
                )
        elif action is Action.AWAIT_ENGINE:
            await _to_its_end(self._settle())
        elif action is Action.REFRESH:
            # A1111 keeps the last prompt's conditioning: the same prompt again would miss the
            # part of a LoRA that acts on the text encoder. Another prompt in between clears it.
            self._must_refresh = self._must_clear = True
        else:
            clean = action is Action.RESTART_WITHOUT_CACHE
            await asyncio.to_thread(self._restart, "damaged-cache" if clean else "poisoned", error)

    async def _settle(self) -> None:
        """After a lost connection: go on only when nothing can be running in the engine."""
        give_up = time.monotonic() + self._timing.stop_patience
        while time.monotonic() < give_up:
            if not self._is_proven():
                return  # its process ended; the next attempt waits for the new one
            with suppress(WorkerError):
                if await asyncio.to_thread(self._webui.is_idle):
                    return
                await asyncio.to_thread(self._webui.interrupt)
            await asyncio.sleep(self._timing.stop_poll)
        self._give_up_on_hung()

    def _give_up_on_hung(self) -> None:
        log.warning("the engine does not stop: it needs a restart")
        self._proven = None  # whoever comes next waits for a first picture
        self._supervisor.request_restart("hung")

    def _restart(self, reason: Reason, error: WorkerError) -> None:
        """Ask for a new process and wait until the old one is gone."""
        if not self._supervisor.can_restart:
            self._retire(f"nobody can restart the engine after {error.code}")
            raise error
        before = self._supervisor.engine()
        self._supervisor.request_restart(reason)
        give_up = time.monotonic() + self._timing.restart_patience
        while self._supervisor.engine() == before and time.monotonic() < give_up:
            time.sleep(self._timing.stop_poll)

    def _decide(
        self, error: WorkerError, earlier: list[WorkerError], payload: Payload
    ) -> recovery.Decision:
        self._out_of_memory_in_a_row += isinstance(error, OutOfMemory)
        wanted = payload.expected.checkpoint
        return recovery.decide(
            error,
            earlier,
            switching=wanted is not None and wanted != self._loaded,
            out_of_memory_in_a_row=self._out_of_memory_in_a_row,
        )

    async def _conclude(self, error: WorkerError, after: After, payload: Payload) -> None:
        """A job has failed for good: give the error its hint, and see to engine and worker."""
        if isinstance(error, OutOfMemory):
            error.hint = smaller(payload.body)
        elif isinstance(error, RouteMissing):
            error.hint = await asyncio.to_thread(self._readiness.what_answers)
        if after is After.RETIRE:
            again = f", {self._out_of_memory_in_a_row} in a row" * isinstance(error, OutOfMemory)
            self._retire(f"{error.code}{again}")
        elif after is After.RESTART:
            self._proven = None
            reason: Reason = "out-of-memory" if isinstance(error, OutOfMemory) else "poisoned"
            self._supervisor.request_restart(reason)

    def _retire(self, reason: str | None) -> None:
        if not reason:
            return
        self.retiring = reason
        log.warning("this worker is to be replaced: %s", reason)
