"""How much memory checkpoint switches have cost: A1111's process grows with each of them. Pure."""

from __future__ import annotations


class MemoryGrowth:
    """Compares with the least that the same process had after a switch.

    Args:
        limit: bytes of growth after which a fresh worker is better.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process: int | None = None
        self._least = 0
        self._switches = 0

    def after_switch(self, process: int | None, used: int) -> str | None:
        """Note the process's memory in bytes; the reason to retire, once it has grown too much."""
        if process != self._process or not self._switches:
            self._process, self._least, self._switches = process, used, 0
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
