"""How long to wait before the next attempt over the network."""

from __future__ import annotations

import random
from collections.abc import Mapping

import urllib3

FIRST = 0.2  # seconds
MOST = 10.0  # seconds
LONGEST_WAIT = 30.0  # seconds; no host makes us wait longer


class BackOff:
    """Pauses that double with each failure, and start anew after a success.

    Some chance is in them, so that the workers of an endpoint do not all come back at once.
    """

    def __init__(self, first: float = FIRST, most: float = MOST) -> None:
        self._first = first
        self._most = most
        self._next = first

    def pause(self, asked_for: float | None = None) -> float:
        """Seconds until the next attempt: what the host asked for, or more."""
        pause = self._next * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._next = min(2 * self._next, self._most)
        return max(pause, min(asked_for or 0.0, LONGEST_WAIT))

    def reset(self) -> None:
        """It worked."""
        self._next = self._first


def backoff(attempt: int, asked_for: float | None = None) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: what the host asks for, else 0.5, 1, 2."""
    return min(LONGEST_WAIT, 0.5 * 2.0**attempt if asked_for is None else asked_for)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the host asks to wait: its Retry-After, a number or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return urllib3.Retry().parse_retry_after(value)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # a year 99999, ...
        return None
