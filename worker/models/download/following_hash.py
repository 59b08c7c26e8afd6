"""SHA-256 of a file while it is being written, in any order."""

from __future__ import annotations

import hashlib
import os
import threading

READ_BACK = 1 << 20


class FollowingHash:
    """The digest of the file's first `position` bytes.

    A block that arrives in order is hashed while it is still in the CPU's cache; what arrived
    out of order is read back once the bytes before it are there. No second pass over the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._buffer = bytearray(READ_BACK)
        self.position = 0

    def offer(self, start: int, block: bytes) -> None:
        """Hash the block if it is the next one."""
        if start == self.position:  # else do not even wait for the lock
            with self._lock:
                if start == self.position:
                    self._digest.update(block)
                    self.position += len(block)

    def follow(self, end: int) -> None:
        """Hash what the file holds up to `end`; every byte before it must be written."""
        view = memoryview(self._buffer)
        while self.position < end:
            with self._lock:
                wanted = min(READ_BACK, end - self.position)
                if wanted <= 0:  # `offer` was faster
                    return
                count = os.preadv(self._descriptor, [view[:wanted]], self.position)
                if not count:
                    raise OSError(f"the file ends at byte {self.position}, before {end}")
                self._digest.update(view[:count])
                self.position += count

    def hexdigest(self) -> str:
        """Lower-case hex of what has been hashed."""
        return self._digest.hexdigest()
