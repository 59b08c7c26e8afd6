"""How long to wait before the next attempt over the network."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

FIRST = 0.2  # seconds
MOST = 10.0  # seconds
JITTER = 0.25
LONGEST_WAIT = 30.0  # seconds; a host that asks for more gets this much


# Parameters of a RateLimit header: r is what remains, t the seconds until there is more.
_PARAMETER = re.compile(r";\s*([rt])=([0-9]{1,9})(?=\s*(?:;|\Z))")


class Backoff:
    """Pauses that double with each failure, and begin again after a success.

    Args:
        first: seconds of the first pause.
        most: seconds of the longest pause, unless the host asks for a longer one.
        jitter: the part of a pause that is random, so that the workers of an endpoint do not all
            try again at once.
        longest_wait: seconds that a host can ask for at most.

    Attributes:
        failures: pauses since the last success.
    """

    def __init__(
        self,
        first: float = FIRST,
        most: float = MOST,
        jitter: float = JITTER,
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        self._first = first
        self._most = most
        self._jitter = jitter
        self._longest_wait = longest_wait
        self._next = first
        self.failures = 0

    def pause(self, asked_for: float | None = None) -> float:
        """Seconds until the next attempt: never less than the host asked for, up to the limit."""
        self.failures += 1
        own = self._next * random.uniform(1 - self._jitter, 1)  # noqa: S311 - not a secret
        self._next = min(2 * self._next, self._most)
        return max(own, min(asked_for or 0.0, self._longest_wait))

    @property
    def is_worth_a_line(self) -> bool:
        """Whether the log needs this failure: the 1st, 2nd, 4th, 8th, ... of a row."""
        return self.failures & (self.failures - 1) == 0

    def reset(self) -> None:
        """Start again with the first pause, because an attempt has succeeded."""
        self.failures = 0
        self._next = self._first


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the host asks to wait: from Retry-After, a number or a date, or RateLimit."""
    value = headers.get("Retry-After")
    if value is None:
        return _until_reset(headers.get("RateLimit", ""))
    import urllib3  # noqa: PLC0415 - what only counts pauses needs no HTTP library

    try:
        return urllib3.Retry().parse_retry_after(value)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # a year 99999, ...
        return None


def _until_reset(limits: str) -> float | None:
    """Seconds until a limit that is used up is reset: `"resolvers";r=0;t=25`, as Hugging Face says.

    The header is the IETF's draft "RateLimit header fields for HTTP"; it lists limits with commas.
    """
    found = [dict(_PARAMETER.findall(limit)) for limit in limits.split(",")]
    used_up = [float(one["t"]) for one in found if one.get("r") == "0" and "t" in one]
    return max(used_up, default=None)
