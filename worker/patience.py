"""How long to wait before the next attempt over the network."""

from __future__ import annotations

import random

FIRST = 0.2  # seconds
MOST = 10.0  # seconds


class BackOff:
    """Pauses that double with each failure, and start anew after a success.

    Some chance is in them, so that the workers of an endpoint do not all come back at once.
    """

    def __init__(self, first: float = FIRST, most: float = MOST) -> None:
        self._first = first
        self._most = most
        self._next = first

    def pause(self, at_least: float = 0.0) -> float:
        """Seconds until the next attempt: what the server asked for, or more."""
        pause = self._next * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._next = min(2 * self._next, self._most)
        return max(pause, at_least)

    def reset(self) -> None:
        """It worked."""
        self._next = self._first


def asked_for(retry_after: str | None, most: float = 3 * MOST) -> float:
    """Seconds that the header Retry-After asks for, bounded; 0 if it gives none or a date."""
    try:
        return min(max(0.0, float(retry_after or 0)), most)  # NaN becomes 0
    except ValueError:
        return 0.0
