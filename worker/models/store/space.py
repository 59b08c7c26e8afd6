"""Space for new models: how much is needed, and which fetched models are evicted for it.

The first half is pure: `bytes_to_free` and `plan_eviction` decide. `SpaceBudget` measures the
store and the disk, and carries the plan out.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.errors import StoreFull
from worker.files import discard, is_folder, note_file
from worker.models.store.blobs import Blobs, size_on_disk

log = logging.getLogger(__name__)

# The plan ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A fetched model that may be evicted.

    Attributes:
        size: bytes.
        last_used: seconds since the epoch.
        pinned: the reason why it must stay; None if it can be evicted.
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
        lacking: bytes that are missing even if everything that can go is deleted; usually 0.
    """

    evict: tuple[Candidate, ...] = ()
    freed: int = 0
    lacking: int = 0


def plan_eviction(candidates: Iterable[Candidate], to_free: int) -> EvictionPlan:
    """Free at least `to_free` bytes; if that is impossible, evict nothing and report the lack."""
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
    """How many bytes must be deleted before `needed` bytes can be written.

    Args:
        needed: bytes to write.
        used: bytes of the fetched models.
        budget: bytes that the fetched models may use; None means that only the disk is a limit.
        disk_free: free bytes of the file system.
        reserve: bytes of the file system that must stay free.
    """
    over_budget = used + needed - budget if budget is not None else 0
    over_disk = needed + reserve - disk_free
    return max(0, over_budget, over_disk)


# The store ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpaceLimits:
    """What eviction must keep.

    Attributes:
        reserve: bytes of the disk that stay free.
        in_use: seconds; a model that any worker used within them is not evicted.
        abandoned: seconds without a new byte after which a download counts as abandoned.
    """

    reserve: int = 2 << 30
    in_use: float = 15 * 60.0
    abandoned: float = 24 * 3600.0


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that has, or will have, the folder."""
    while not is_folder(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


class SpaceBudget:
    """The space of one store. Thread-safe.

    Args:
        blobs: the fetched models; nothing else is ever deleted.
        budget: bytes that they may use in total; None means that only the disk is a limit.
        limits: what eviction must keep.
        clock: seconds since the epoch.
        disk_free: folder -> free bytes of its disk.

    Attributes:
        pinned: sha256 of every model that this worker uses or has loaded.
        evicts: False if no model may be evicted at all.
    """

    def __init__(
        self,
        blobs: Blobs,
        budget: int | None,
        limits: SpaceLimits = SpaceLimits(),
        *,
        clock: Callable[[], float] = time.time,
        disk_free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._blobs = blobs
        self._budget = budget
        self._limits = limits
        self._clock = clock
        self._disk_free = disk_free
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}  # bytes that are not on the disk yet
        self.pinned: Collection[str] = frozenset()
        self.evicts = True

    def make(self, key: str, needed: int) -> None:
        """Evict until `needed` bytes fit, and reserve them until `done(key)`.

        Raises:
            StoreFull: evicting everything that can go is not enough; nothing was deleted.
        """
        with self._lock:
            self._coming.pop(key, None)  # this download starts again
            plan = self.plan(needed)
            if plan.evict or plan.lacking:
                self.discard_abandoned()
                plan = self.plan(needed)
            if plan.lacking:
                raise self._full(needed, plan)
            self.carry_out(plan)
            self._coming[key] = needed

    def left(self, key: str, size: int) -> None:
        """Reserve only `size` more bytes: the others are on the disk and are counted there."""
        with self._lock:
            if key in self._coming:
                self._coming[key] = size

    def done(self, key: str) -> None:
        """End the reservation: the download has ended, successfully or not."""
        with self._lock:
            self._coming.pop(key, None)

    def plan(self, needed: int = 0, budget: int | None = None) -> EvictionPlan:
        """What would be evicted for `needed` more bytes; nothing is deleted."""
        candidates = self._candidates()
        used = sum(one.size for one in candidates)
        # Running downloads count, also those of other workers; abandoned ones are deleted before
        # any model is evicted.
        running = (path for path in self._blobs.partials() if not self._is_abandoned(path))
        used += sum(size_on_disk(path) for path in running)
        coming = sum(self._coming.values())
        to_free = bytes_to_free(
            needed=needed + coming,
            used=used,
            budget=self._budget if budget is None else budget,
            disk_free=self._disk_free(self._blobs.root),
            reserve=self._limits.reserve if needed else 0,
        )
        return plan_eviction(candidates, to_free)

    def carry_out(self, plan: EvictionPlan) -> int:
        """Delete the models of the plan; returns the freed bytes.

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
        """Old partial files, and old files that no lookup can find."""
        return list(filter(self._is_abandoned, [*self._blobs.partials(), *self._blobs.leftovers()]))

    def discard_abandoned(self) -> int:
        """Delete the abandoned files; returns their number."""
        abandoned = self.abandoned()
        for path in abandoned:
            with suppress(OSError):
                discard(path)
        return len(abandoned)

    def _candidates(self) -> list[Candidate]:
        recently = self._clock() - self._limits.in_use
        candidates = []
        for blob in self._blobs.all():
            used = self._blobs.last_used(blob)
            in_use = not self.evicts or blob.sha256 in self.pinned or used > recently
            pinned = "in use" if in_use else None
            name = f"{blob.about.kind} {blob.about.stem}"
            candidates.append(Candidate(name, blob.sha256, blob.about.size, used, pinned))
        return candidates

    def _is_abandoned(self, path: Path) -> bool:
        times = [0.0]
        for file in (path, note_file(path)):
            with suppress(OSError):
                status = file.stat()
                times += [status.st_mtime, status.st_ctime]  # a copied file can keep an old mtime
        return max(times) < self._clock() - self._limits.abandoned

    def _full(self, needed: int, plan: EvictionPlan) -> StoreFull:
        limit = f", the budget is {_amount(self._budget)}" if self._budget is not None else ""
        return StoreFull(
            f"{_amount(needed)} do not fit: {_amount(plan.lacking)} are missing even if all models"
            f" that are not in use are evicted ({_amount(self._disk_free(self._blobs.root))} of the"
            f" disk are free{limit}).",
            needed=needed,
            lacking=plan.lacking,
        )


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"
