"""What a fault is: how it is made and healed, and what may come of it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from campaign.world import World

Heal = Callable[[], None]
Inject = Callable[[World, random.Random], Heal | None]

# With these the engine's failure reaches a caller after the worker has tried to recover.
LOST = frozenset({"ENGINE_CONNECTION_LOST", "ENGINE_NOT_READY"})
# A model or a link was removed between the worker's look at it and the engine's.
VANISHED = frozenset(
    {"MODEL_NOT_FOUND", "MODEL_FILE_INVALID", "MODEL_NOT_LISTED", "ENGINE_ERROR", "NO_CHECKPOINT"}
    | {"WRONG_CHECKPOINT", "LORA_NOT_APPLIED", "WRONG_VAE", "ENGINE_POISONED"}
)
HANDLER_KILLED, GONE = 137, -9  # of start.sh: its handler was killed, it was killed itself
RETIRED = frozenset({0, 69, 70})


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: a sentence's worth of words; the key in summaries.
        inject: makes it; returns what heals it, or None if it passes by itself.
        codes: with which a job may fail.
        ends: statuses with which start.sh may end, each with its reason in the log.
        loses: jobs of the worker may be lost with it, and are given to the next one.
        engines: with which it can be made.
        early: only before the jobs of a step, because a job in between could not know of it.
        fetches: models are forgotten before, so that jobs fetch them.
        mounts: the volume must be a file system of its own.
        hold: seconds until it is healed, at least and at most.
        weight: how often it is drawn.
        is_long: it takes minutes; not in the short form.
    """

    name: str
    inject: Inject
    codes: frozenset[str] = frozenset()
    ends: frozenset[int] = frozenset()
    loses: bool = False
    engines: tuple[str, ...] = ("fake", "embedded")
    early: bool = False
    fetches: bool = False
    mounts: bool = False
    hold: tuple[float, float] = (0.2, 2.0)
    weight: float = 1.0
    is_long: bool = False

    def fits(self, world: World, *, short: bool) -> bool:
        """Whether it can be made here."""
        if self.mounts and not world.is_mounted:
            return False
        return world.engine in self.engines and not (short and self.is_long)


def catalogue() -> list[Fault]:
    """Every kind of fault."""
    from campaign import engine_faults, file_faults, machine_faults, network_faults

    parts = (engine_faults, file_faults, network_faults, machine_faults)
    faults = [fault for part in parts for fault in part.FAULTS]
    names = [fault.name for fault in faults]
    assert len(set(names)) == len(names), names
    return faults
