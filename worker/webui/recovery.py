"""What to do when a generation failed: a pure function that reads one table.

`worker.webui.engine` carries it out. A POST whose job may still be running is never sent again:
each action below first makes sure that nothing runs in the engine.
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
    """What to do next, after an attempt failed. Replay: send the same job again."""

    FAIL = "report the error to the caller"
    AWAIT_ROUTE = "wait, check API, model and txt2img again, replay"
    AWAIT_ENGINE = "make sure that nothing runs, wait for the restarted engine, replay"
    RESTART = "restart the engine, replay"
    RESTART_WITHOUT_CACHE = "stop the engine, remove its cache folder, start it, replay"
    REFRESH = "let the engine read its model folders again, replay"


class Consequence(Enum):
    """What happens to engine and worker when no attempt is left and the job has failed."""

    KEEP_WORKER = "the worker takes the next job"
    RESTART_ENGINE = "the engine is restarted before the next job"
    RETIRE_WORKER = "the worker is replaced"


@dataclass(frozen=True)
class RecoveryPlan:
    """How one kind of failure is handled.

    Attributes:
        action: what precedes a replay.
        replays: how often one job is replayed after this kind of failure.
        consequence: what follows when that did not help.
    """

    action: Action
    replays: int
    consequence: Consequence


FAIL_AND_KEEP = RecoveryPlan(Action.FAIL, 0, Consequence.KEEP_WORKER)

# The first entry that the error is an instance of applies.
PLANS: dict[type[WorkerError], RecoveryPlan] = {
    errors.RouteMissing: RecoveryPlan(
        Action.AWAIT_ROUTE, MAX_ATTEMPTS - 1, Consequence.RETIRE_WORKER
    ),
    errors.ConnectionLost: RecoveryPlan(Action.AWAIT_ENGINE, 1, Consequence.RETIRE_WORKER),
    errors.EngineNotReady: RecoveryPlan(Action.FAIL, 0, Consequence.RETIRE_WORKER),
    errors.EnginePoisoned: RecoveryPlan(Action.RESTART, 1, Consequence.RETIRE_WORKER),
    errors.CacheDamaged: RecoveryPlan(Action.RESTART_WITHOUT_CACHE, 1, Consequence.RETIRE_WORKER),
    errors.NoCheckpoint: RecoveryPlan(Action.REFRESH, 1, Consequence.KEEP_WORKER),
    errors.ModelNotListed: RecoveryPlan(Action.REFRESH, 1, Consequence.KEEP_WORKER),
    errors.ProofError: RecoveryPlan(Action.REFRESH, 1, Consequence.KEEP_WORKER),
    errors.OutOfMemory: FAIL_AND_KEEP,
    errors.EngineFault: FAIL_AND_KEEP,
    errors.JobTimeout: FAIL_AND_KEEP,
    errors.JobError: FAIL_AND_KEEP,
}

# The missing memory may be fragmented or leaked: a fresh engine frees it. If that does not help, a
# fresh worker may get another card.
_AFTER_OUT_OF_MEMORY = {
    Memory.ENOUGH: Consequence.KEEP_WORKER,
    Memory.SHORT_ONCE: Consequence.KEEP_WORKER,
    Memory.SHORT_TWICE: Consequence.RESTART_ENGINE,
    Memory.SHORT_OFTEN: Consequence.RETIRE_WORKER,
}


@dataclass(frozen=True)
class Decision:
    """The next step after a failure; `consequence` applies only if the action is FAIL."""

    action: Action
    consequence: Consequence = Consequence.KEEP_WORKER


def decide(
    error: WorkerError,
    earlier: Sequence[WorkerError] = (),
    *,
    switching: bool = False,
    loras: bool = False,
    memory: Memory = Memory.ENOUGH,
) -> Decision:
    """Choose the next step.

    Args:
        error: the failure of the last attempt.
        earlier: the failures of this job's attempts before it.
        switching: the job needed another checkpoint or VAE than the loaded one.
        loras: the job used LoRAs.
        memory: how often in a row a picture did not fit, this one included.
    """
    kind = next((kind for kind in PLANS if isinstance(error, kind)), None)
    plan = PLANS[kind] if kind else FAIL_AND_KEEP
    tried = sum(isinstance(before, kind) for before in earlier) if kind else 0
    if tried < plan.replays and len(earlier) + 1 < MAX_ATTEMPTS:
        return Decision(plan.action)
    consequence = plan.consequence
    if isinstance(error, errors.OutOfMemory):
        consequence = _AFTER_OUT_OF_MEMORY[memory]
    if _is_left_poisoned(error, consequence, switching=switching, loras=loras):
        consequence = Consequence.RESTART_ENGINE
    return Decision(Action.FAIL, consequence)


def _is_left_poisoned(
    error: WorkerError, consequence: Consequence, *, switching: bool, loras: bool
) -> bool:
    """Whether the job itself may have left the engine with parts of two models (A1111 v1.9.3).

    `load_model_weights` and `reload_vae_weights` copy what fits before they fail, and leave the
    model on the CPU. `network_apply_weights` notes which LoRAs a layer has only after it has
    changed the layer. An engine that fails a switch when it is fresh is not what is broken: the
    job's model is, so the worker stays.
    """
    if isinstance(error, errors.EnginePoisoned):
        return switching
    if isinstance(error, errors.OutOfMemory):
        return switching and consequence is Consequence.KEEP_WORKER
    return isinstance(error, errors.EngineFault) and (switching or loras)


class MemoryGrowth:
    """Watches how the engine's memory grows with each checkpoint switch.

    Growth counts from the least memory that the same process had after a switch, with as many
    checkpoints in memory.

    Args:
        limit: bytes of growth at which the worker is to be replaced.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process: tuple[int | None, int] = (None, 1)
        self._least = 0
        self._switches = 0

    def after_switch(self, process: int | None, used: int, kept: int = 1) -> str | None:
        """Note the memory after a switch.

        Args:
            process: the engine's process id.
            used: its memory in bytes.
            kept: how many checkpoints it has in memory.

        Returns:
            The reason to replace the worker; None while the growth is within the limit.
        """
        if (process, kept) != self._process or not self._switches:
            self._process, self._least, self._switches = (process, kept), used, 0
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
