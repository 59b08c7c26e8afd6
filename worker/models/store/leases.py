"""Leases of downloads: one worker of a volume downloads a file, while the others wait for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.errors import FetchStopped
from worker.files import is_regular, read_small, storage_error


class Leases:
    """The leases in one folder. Safe for threads and for processes.

    Args:
        folder: is made with the first lease.
        duration: seconds; a lease that shows no sign of life for this long is taken over.
        poll: seconds between two checks of a waiting worker.
    """

    def __init__(self, folder: Path, duration: float, poll: float) -> None:
        self._folder = folder
        self._duration = duration
        self._poll = poll
        self._left: dict[Path, str] = {}  # leases of this process that could not be removed

    @contextmanager
    def hold(self, key: str, is_there: Callable[[], bool], stop: threading.Event) -> Iterator[bool]:
        """Wait for this process's turn to download; yields false if the file is there by then.

        Raises:
            FetchStopped, StoreFull, StoreNotWritable.
        """
        from filelock import SoftFileLease, Timeout  # noqa: PLC0415 - 30 ms, only for downloads

        lock = self._folder / f"{key}.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(lock) and not is_regular(lock):
                lock.unlink(missing_ok=True)  # opening a FIFO would block a reader for ever
            self._remove_left(lock)
            lease = SoftFileLease(lock, lease_duration=self._duration)
            lease.acquire(
                poll_interval=self._poll,
                cancel_check=lambda: is_there() or stop.is_set(),
            )
        except Timeout:
            if stop.is_set() and not is_there():
                raise FetchStopped("the download was stopped.") from None
            yield False
        except OSError as error:
            raise storage_error(error) from error
        else:
            token = lease.token
            try:
                yield not is_there()
            finally:
                lease.release()
                # Its file stays if it cannot be removed now, such as on a busy network volume.
                if token and os.path.lexists(lock):
                    self._left[lock] = token

    def _remove_left(self, lock: Path) -> None:
        """Remove the lease that this process could not remove when it had ended.

        Otherwise, the next download would wait until it counts as without a sign of life. The
        token shows that the lease has not been taken over meanwhile.
        """
        token = self._left.pop(lock, None)
        if token is None:
            return
        with suppress(OSError):  # it is gone, or it still cannot be removed: wait as for any other
            if token.encode() in read_small(lock):
                lock.unlink()
