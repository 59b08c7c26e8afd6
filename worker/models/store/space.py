"""Room for new models: the budget, the disk, and what is evicted for them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from worker.errors import StoreFull
from worker.models.download.partial_file import discard, note_file
from worker.models.store import eviction
from worker.models.store.blobs import Blobs, size_on_disk
from worker.models.store.eviction import Candidate, Plan

RESERVE = 2 << 30  # bytes of the disk that stay free
IN_USE = 15 * 60.0  # seconds; what any worker used within them is not evicted
ABANDONED = 24 * 3600.0  # seconds without a byte, then nobody goes on with a download

log = logging.getLogger("worker.models")


class Room:
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

    def plan(self, needed: int = 0, budget: int | None = None) -> Plan:
        """What would be evicted for that many more bytes."""
        candidates = self._candidates()
        used = sum(one.size for one in candidates)
        # Downloads under way, other workers' too; abandoned ones go before any model does.
        used += sum(size_on_disk(path) for path in self._blobs.partials() if not _is_old(path))
        coming = sum(self._coming.values())
        to_free = eviction.bytes_to_free(
            needed=needed + coming,
            used=used,
            budget=self._budget if budget is None else budget,
            disk_free=self._disk_free(),
            reserve=RESERVE if needed else 0,
        )
        return eviction.plan(candidates, to_free)

    def carry_out(self, plan: Plan) -> int:
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

    def _full(self, needed: int, plan: Plan) -> StoreFull:
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
