"""Space for new models: the budget, the disk, and what is evicted for them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.errors import StoreFull
from worker.files import discard, note_file
from worker.models.store.blobs import Blobs, size_on_disk

RESERVE = 2 << 30  # bytes of the disk that stay free
IN_USE = 15 * 60.0  # seconds; what any worker used within them is not evicted
ABANDONED = 24 * 3600.0  # seconds without a byte, then nobody goes on with a download

log = logging.getLogger("worker.models")


class SpaceBudget:
    """The space of one store. Thread-safe.

    Args:
        blobs: the fetched models, the only ones that are ever deleted.
        budget: bytes that they may have in all; None for what the disk allows.

    Attributes:
        pinned: sha256 of what this worker uses or has loaded.
        evicts: whether anything may go at all.
    """

    def __init__(self, blobs: Blobs, budget: int | None) -> None:
        self._blobs = blobs
        self._budget = budget
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}  # bytes that are not on the disk yet
        self.pinned: Collection[str] = frozenset()
        self.evicts = True

    def make(self, key: str, needed: int) -> None:
        """Evict until `needed` bytes fit; they count as used until `done(key)`.

        Raises:
            StoreFull: even everything that may go is not enough; nothing was deleted.
        """
        with self._lock:
            self._coming.pop(key, None)  # a download that starts over
            plan = self.plan(needed)
            if plan.evict or plan.lacking:
                self.discard_abandoned()
                plan = self.plan(needed)
            if plan.lacking:
                raise self._full(needed, plan)
            self.carry_out(plan)
            self._coming[key] = needed

    def left(self, key: str, size: int) -> None:
        """So many of the bytes are still to come; what has come takes its space itself."""
        with self._lock:
            if key in self._coming:
                self._coming[key] = size

    def done(self, key: str) -> None:
        """The bytes have come, or never will."""
        with self._lock:
            self._coming.pop(key, None)

    def plan(self, needed: int = 0, budget: int | None = None) -> EvictionPlan:
        """What would be evicted for that many more bytes."""
        candidates = self._candidates()
        used = sum(one.size for one in candidates)
        # Downloads under way, other workers' too; abandoned ones go before any model does.
        used += sum(size_on_disk(path) for path in self._blobs.partials() if not _is_old(path))
        coming = sum(self._coming.values())
        to_free = bytes_to_free(
            needed=needed + coming,
            used=used,
            budget=self._budget if budget is None else budget,
            disk_free=self._disk_free(),
            reserve=RESERVE if needed else 0,
        )
        return plan_eviction(candidates, to_free)

    def carry_out(self, plan: EvictionPlan) -> int:
        """Delete what the plan names; returns the bytes that were freed.

        Raises:
            StoreNotWritable.
        """
        going = {one.sha256 for one in plan.evict}
        freed = 0
        for blob in [blob for blob in self._blobs.all() if blob.sha256 in going]:
            freed += self._blobs.remove(blob)
            log.info("evicted %s %s (%d bytes)", blob.about.kind, blob.about.stem, blob.about.size)
        return freed

    def abandoned(self) -> list[Path]:
        """Partial files that nobody will go on with, and what nobody can find."""
        return list(filter(_is_old, [*self._blobs.partials(), *self._blobs.leftovers()]))

    def discard_abandoned(self) -> int:
        """Delete them; returns how many there were."""
        abandoned = self.abandoned()
        for path in abandoned:
            with suppress(OSError):
                discard(path)
        return len(abandoned)

    def _candidates(self) -> list[Candidate]:
        recently = time.time() - IN_USE
        candidates = []
        for blob in self._blobs.all():
            used = self._blobs.last_used(blob)
            in_use = not self.evicts or blob.sha256 in self.pinned or used > recently
            pinned = "in use" if in_use else None
            name = f"{blob.about.kind} {blob.about.stem}"
            candidates.append(Candidate(name, blob.sha256, blob.about.size, used, pinned))
        return candidates

    def _disk_free(self) -> int:
        folder = self._blobs.root
        while not folder.is_dir():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _full(self, needed: int, plan: EvictionPlan) -> StoreFull:
        limit = f", the budget is {_amount(self._budget)}" if self._budget is not None else ""
        return StoreFull(
            f"{_amount(needed)} do not fit: {_amount(plan.lacking)} are lacking even when all"
            f" that is not in use is evicted ({_amount(self._disk_free())} of the disk are"
            f" free{limit}).",
            needed=needed,
            lacking=plan.lacking,
        )


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"


def _is_old(path: Path) -> bool:
    times = [0.0]
    for file in (path, note_file(path)):
        with suppress(OSError):
            status = file.stat()
            times += [status.st_mtime, status.st_ctime]  # a copy may have kept its old mtime
    return max(times) < time.time() - ABANDONED


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
class EvictionPlan:
    """What is deleted, the least recently used first, and whether that is enough.

    Attributes:
        freed: bytes.
        lacking: bytes that are missing even then; 0 if all is well.
    """

    evict: tuple[Candidate, ...] = ()
    freed: int = 0
    lacking: int = 0


def plan_eviction(candidates: Iterable[Candidate], to_free: int) -> EvictionPlan:
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
        return EvictionPlan(lacking=to_free - freed)
    return EvictionPlan(tuple(chosen), freed)


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
