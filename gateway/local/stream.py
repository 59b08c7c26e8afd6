"""What a job in this process has sent to its `/stream`, until it is read."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

MOST_AT_ONCE = 16  # chunks in one answer; each has at most 1 MB


class Chunks:
    """The unread chunks of one job, in their order; each is read once.

    Attributes:
        size: bytes of memory of the unread chunks, about.
    """

    def __init__(self) -> None:
        self.size = 0
        self._unread: deque[tuple[Mapping[str, Any], int]] = deque()

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, chunk: Mapping[str, Any], room: int) -> bool:
        """Keep a chunk; whether it has room. A report replaces an unread one directly before it."""
        if self._unread and _is_report(chunk) and _is_report(self._unread[-1][0]):
            self.size -= self._unread.pop()[1]
        size = memory_of(chunk)
        if self.size + size > room:
            return False
        self._unread.append((chunk, size))
        self.size += size
        return True

    def take(self, most: int = MOST_AT_ONCE) -> list[dict[str, Any]]:
        """The next chunks, as RunPod's /stream shows them; they are read then."""
        taken = [self._unread.popleft() for _ in range(min(most, len(self._unread)))]
        self.size -= sum(size for _, size in taken)
        return [{"output": chunk} for chunk, _ in taken]


def _is_report(chunk: Mapping[str, Any]) -> bool:
    return chunk.get("type") == "progress"


def memory_of(value: Any) -> int:  # noqa: ANN401 - JSON
    """About the bytes of memory of a JSON value.

    Everything counts, because a request decides what it is made of: keys, and small values, of
    which millions fit into one request. Not recursive, because a request decides its depth, too.
    """
    total, rest = 0, [value]
    while rest:
        one = rest.pop()
        total += sys.getsizeof(one)
        if isinstance(one, Mapping):
            rest.extend(one)  # its keys
            rest.extend(one.values())
        elif isinstance(one, list | tuple):
            rest.extend(one)
    return total
