"""What to do when a generation failed: a pure decision, read from one table.

The handler carries it out. A POST whose job may still be running is never sent again: every way
back to the engine below first makes sure that nothing runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from worker import errors
from worker.errors import WorkerError
from worker.webui.engine_state import Memory

MAX_ATTEMPTS = 3


class Action(Enum):
    """How to get from a failure to the next attempt."""

    FAIL = "report it to the caller"
    AWAIT_ROUTE = "wait, check API, model and txt2img again, replay"
    AWAIT_ENGINE = "make sure that nothing runs, wait for the restarted engine, replay"
    RESTART = "restart the engine, replay"
    RESTART_WITHOUT_CACHE = "stop the engine, remove its cache folder, start it, replay"
    REFRESH = "let the engine read its model folders again, replay"


class After(Enum):
    """What becomes of engine and worker when the job has failed for good."""

    KEEP = "the worker takes the next job"
    RESTART = "the engine is restarted before the next job"
    RETIRE = "the worker is replaced"


@dataclass(frozen=True)
class RecoveryPlan:
    """For one kind of failure: the way back, how often it is tried, and the end of it."""

    action: Action
    replays: int
    after: After


FAIL_AND_KEEP = RecoveryPlan(Action.FAIL, 0, After.KEEP)

# The first entry that an error is an instance of counts.
PLANS: dict[type[WorkerError], RecoveryPlan] = {
    errors.RouteMissing: RecoveryPlan(Action.AWAIT_ROUTE, MAX_ATTEMPTS - 1, After.RETIRE),
    errors.ConnectionLost: RecoveryPlan(Action.AWAIT_ENGINE, 1, After.RETIRE),
    errors.EngineNotReady: RecoveryPlan(Action.FAIL, 0, After.RETIRE),
    errors.EnginePoisoned: RecoveryPlan(Action.RESTART, 1, After.RETIRE),
    errors.CacheDamaged: RecoveryPlan(Action.RESTART_WITHOUT_CACHE, 1, After.RETIRE),
    errors.NoCheckpoint: RecoveryPlan(Action.REFRESH, 1, After.KEEP),
    errors.ModelNotListed: RecoveryPlan(Action.REFRESH, 1, After.KEEP),
    errors.ProofError: RecoveryPlan(Action.REFRESH, 1, After.KEEP),
    errors.OutOfMemory: FAIL_AND_KEEP,
    errors.EngineFault: FAIL_AND_KEEP,
    errors.JobTimeout: FAIL_AND_KEEP,
    errors.JobError: FAIL_AND_KEEP,
}

# Memory that one picture did not get may be lost to fragments or to a leak: a fresh engine has it
# back, and if that does not help, a fresh worker may be on another card.
_AFTER_OUT_OF_MEMORY = {
    Memory.ENOUGH: After.KEEP,
    Memory.SHORT_ONCE: After.KEEP,
    Memory.SHORT_TWICE: After.RESTART,
    Memory.SHORT_OFTEN: After.RETIRE,
}


@dataclass(frozen=True)
class Decision:
    """The next step after a failure; `after` counts only when the action is FAIL."""

    action: Action
    after: After = After.KEEP


def decide(
    error: WorkerError,
    earlier: Sequence[WorkerError] = (),
    *,
    switching: bool = False,
    memory: Memory = Memory.ENOUGH,
) -> Decision:
    """Choose the next step.

    Args:
        error: what the last attempt ended with.
        earlier: what the attempts of this job before it ended with.
        switching: the job asked for another checkpoint than was loaded. A1111 is poisoned by a
            switch that fails, so after its error 500 it must not get another job.
        memory: how often in a row a picture did not fit, this one included.
    """
    kind = next((kind for kind in PLANS if isinstance(error, kind)), None)
    plan = PLANS[kind] if kind else FAIL_AND_KEEP
    tried = sum(isinstance(before, kind) for before in earlier) if kind else 0
    if tried < plan.replays and len(earlier) + 1 < MAX_ATTEMPTS:
        return Decision(plan.action)
    if isinstance(error, errors.OutOfMemory):
        return Decision(Action.FAIL, _AFTER_OUT_OF_MEMORY[memory])
    if isinstance(error, errors.EngineFault) and switching:
        return Decision(Action.FAIL, After.RESTART)
    return Decision(Action.FAIL, plan.after)


class MemoryGrowth:
    """Compares with the least that the same process had after a switch.

    Args:
        limit: bytes of growth after which a fresh worker is better.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process: int | None = None
        self._least = 0
        self._switches = 0

    def after_switch(self, process: int | None, used: int) -> str | None:
        """Note the process's memory in bytes; the reason to retire, once it has grown too much."""
        if process != self._process or not self._switches:
            self._process, self._least, self._switches = process, used, 0
        self._switches += 1
        self._least = min(self._least, used)
        growth = used - self._least
        if growth <= self._limit:
            return None
        return (
            f"the engine's memory grew by {growth / 1e9:.1f} GB to {used / 1e9:.1f} GB over"
            f" {self._switches} checkpoint switches (MEMORY_GROWTH_LIMIT_GB ="
            f" {self._limit / 1e9:g})"
        )
