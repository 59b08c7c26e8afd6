"""What to delete so that a new model fits. Pure: the plan is a value that can be printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A fetched model as the plan sees it.

    Attributes:
        size: bytes.
        last_used: seconds since the epoch.
        pinned: why it must stay, in a word; None if it may go.
    """

    name: str
    sha256: str
    size: int
    last_used: float
    pinned: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is deleted, the least recently used first, and whether that is enough.

    Attributes:
        freed: bytes.
        lacking: bytes that are missing even then; 0 if all is well.
    """

    evict: tuple[Candidate, ...] = ()
    freed: int = 0
    lacking: int = 0


def plan(candidates: Iterable[Candidate], to_free: int) -> Plan:
    """Free at least `to_free` bytes, or say how many are lacking; then nothing is deleted."""
    free_to_go = sorted(
        (one for one in candidates if one.pinned is None),
        key=lambda one: (one.last_used, one.sha256),
    )
    chosen: list[Candidate] = []
    freed = 0
    for one in free_to_go:
        if freed >= to_free:
            break
        chosen.append(one)
        freed += one.size
    if freed < to_free:
        return Plan(lacking=to_free - freed)
    return Plan(tuple(chosen), freed)


def bytes_to_free(needed: int, used: int, budget: int | None, disk_free: int, reserve: int) -> int:
    """How much must go before `needed` bytes come.

    Args:
        needed: bytes to come.
        used: bytes of the fetched models.
        budget: bytes that they may have in all; None for what the disk allows.
        disk_free: bytes that the file system has left.
        reserve: bytes of it that stay free for others.
    """
    over_budget = used + needed - budget if budget is not None else 0
    over_disk = needed + reserve - disk_free
    return max(0, over_budget, over_disk)
