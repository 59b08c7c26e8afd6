"""How long uploads may take, and how large a result may be."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MB = 1e6


@dataclass(frozen=True)
class UploadLimits:
    """For uploads to a bucket or to a job's own URLs.

    Attributes:
        at_once: uploads of one job.
        attempts: for each file.
        seconds: for one file to a host that a job names, all attempts together: such a host may
            send one byte from time to time.
        longest_wait: seconds between two attempts to `put`; the caller waits for the result.
        connect_timeout: seconds, to the bucket.
        read_timeout: seconds for the bucket's answer.
    """

    at_once: int = 4
    attempts: int = 3
    seconds: float = 120.0
    longest_wait: float = 5.0
    connect_timeout: float = 5.0
    read_timeout: float = 30.0


UPLOAD_LIMITS = UploadLimits()


class ResultLimit:
    """The bytes that a result may have as JSON; thread-safe.

    Attributes:
        bytes: the limit; None: there is none.
    """

    def __init__(self, limit: int | None) -> None:
        self.bytes = limit
        self._is_shared = False
        self._taken = 0
        self._lock = threading.Lock()

    def shared(self) -> ResultLimit:
        """The same limit for several results in one: each takes what the earlier ones left."""
        shared = ResultLimit(self.bytes)
        shared._is_shared = True
        return shared

    def take(self, size: int) -> bool:
        """Whether a result of this size fits; if the limit is shared, its bytes are then taken."""
        with self._lock:
            if self.bytes is not None and self._taken + size > self.bytes:
                return False
            self._taken += size * self._is_shared
            return True

    def __str__(self) -> str:
        """In MB, and how much of it is taken."""
        taken = f", of which the other inputs have taken {self._taken / MB:.2f}"
        return f"{(self.bytes or 0) / MB:g}{taken * bool(self._taken)}"
