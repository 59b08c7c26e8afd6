"""The attempts of one job at the engine, and the recovery between them.

`worker.webui.recovery` decides what to do after a failure, and this module does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.errors import CacheDamaged, EngineNotReady, OutOfMemory, RouteMissing, WorkerError
from worker.stopwatch import Stopwatch
from worker.webui import recovery
from worker.webui.engine_state import Event
from worker.webui.lifecycle import Lifecycle
from worker.webui.pipeline import Disturbed, Slot
from worker.webui.readiness import Readiness
from worker.webui.recovery import Action, Consequence
from worker.webui.runner import ReportProgress, Runner
from worker.webui.supervisor import Reason
from worker.webui.timing import EngineTiming

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[T]):
    """What one job wants from the engine, as the recovery must know it.

    Attributes:
        attempt: one attempt; called again after a failure that can be repaired.
        smaller: makes the hint for a job that does not fit into the GPU's memory.
        is_switching: whether the last attempt needed another checkpoint or VAE.
        loras: whether the job uses LoRAs.
        preview: whether the engine makes previews.
    """

    attempt: Callable[[], Awaitable[T]]
    smaller: Callable[[], str]
    is_switching: Callable[[], bool] = lambda: False
    loras: bool = False
    preview: bool = False


class Attempts:
    """Makes attempts and recovers the engine."""

    def __init__(
        self, lifecycle: Lifecycle, readiness: Readiness, runner: Runner, timing: EngineTiming
    ) -> None:
        self._lifecycle = lifecycle
        self._readiness = readiness
        self._runner = runner
        self._timing = timing

    async def until_done(
        self,
        work: Work[T],
        stopwatch: Stopwatch,
        slot: Slot,
        report: ReportProgress | None = None,
    ) -> T:
        """The result of the first attempt that succeeds, of at most `recovery.MAX_ATTEMPTS`.

        Args:
            work: what the engine is to do.
            stopwatch: the job's deadline.
            slot: the job's use of the engine; after a failure the job has the engine alone.
            report: is called with the progress of pictures; None: it is not asked for.

        Raises:
            WorkerError: of the last attempt; `attempts` in its details counts them.
            asyncio.CancelledError: after the engine has stopped.
        """
        failures: list[WorkerError] = []
        while True:
            try:
                async with self._followed(report, work, slot):
                    result = await work.attempt()
            except Disturbed:
                log.info("sent again: the job before this one failed or was interrupted")
                await slot.alone()
            except WorkerError as error:
                slot.may_pass_on = False
                await slot.alone()
                error.details["attempts"] = len(failures) + 1
                await self._recover(error, failures, work, stopwatch)
                failures.append(error)
            else:
                self._lifecycle.report(Event.PICTURE_MADE)
                return result

    def _followed(
        self, report: ReportProgress | None, work: Work[T], slot: Slot
    ) -> AbstractAsyncContextManager[None]:
        if report is None:
            return nullcontext()
        return self._runner.followed(report, slot, preview=work.preview)

    async def _recover(
        self, error: WorkerError, earlier: list[WorkerError], work: Work[T], stopwatch: Stopwatch
    ) -> None:
        """Do what must come before the next attempt, or raise the error."""
        timed_out = not stopwatch.left() and not self._lifecycle.process().is_gone
        if isinstance(error, EngineNotReady) and timed_out:
            # The engine may be ready a moment later: no reason to replace the worker.
            raise stopwatch.expired(f"{error.message.rstrip('.')}; no result") from error
        decision = self._decide(error, earlier, work)
        if decision.action is Action.FAIL or timed_out:
            await self._conclude(error, decision.consequence, work)
            raise error
        log.warning("attempt %d: %s -> %s", len(earlier) + 1, error, decision.action.value)
        await self._act(decision.action, error)

    def _decide(
        self, error: WorkerError, earlier: list[WorkerError], work: Work[T]
    ) -> recovery.Decision:
        if isinstance(error, OutOfMemory):
            self._lifecycle.report(Event.OUT_OF_MEMORY)
        return recovery.decide(
            error,
            earlier,
            switching=work.is_switching(),
            loras=work.loras,
            memory=self._lifecycle.state.memory,
        )

    async def _act(self, action: Action, error: WorkerError) -> None:
        """Do what the decision requires before the next attempt."""
        if action is Action.AWAIT_ROUTE:
            await asyncio.sleep(self._timing.route_wait)
            with suppress(EngineNotReady, CacheDamaged):
                await asyncio.to_thread(
                    self._lifecycle.wait_until_ready, self._timing.route_recheck, again=True
                )
        elif action is Action.AWAIT_ENGINE:
            await self._runner.settle()
        elif action is Action.REFRESH:
            self._lifecycle.report(Event.PROOF_FAILED)
        else:
            damaged = action is Action.RESTART_WITHOUT_CACHE
            reason: Reason = "damaged-cache" if damaged else "poisoned"
            await asyncio.to_thread(self._lifecycle.restart, reason, error)

    async def _conclude(self, error: WorkerError, consequence: Consequence, work: Work[T]) -> None:
        """Give the error of a failed job its hint, then restart the engine or retire the worker."""
        if isinstance(error, OutOfMemory):
            error.hint = work.smaller()
        elif isinstance(error, RouteMissing):
            error.hint = await asyncio.to_thread(self._readiness.what_answers)
        if consequence is Consequence.RETIRE_WORKER:
            often = ", three or more in a row" * isinstance(error, OutOfMemory)
            self._lifecycle.retire(f"{error.code}{often}")
        elif consequence is Consequence.RESTART_ENGINE:
            out_of_memory = isinstance(error, OutOfMemory)
            self._lifecycle.request_restart("out-of-memory" if out_of_memory else "bad-model")
