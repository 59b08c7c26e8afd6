"""How many cores this process may use: what the scheduler and the container's quota allow."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_LONGEST = 100  # characters of a file with a quota


def usable(cgroup: Path = _CGROUP) -> int:
    """The number of cores, at least 1; a part of a core counts as a whole one.

    A container on a large machine sees all cores of it, although its quota allows only some.
    """
    # Not on macOS and Windows: there is no affinity.
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """The cores of the quota, from the files of version 2 or 1; None without a quota."""
    both = _words(cgroup / "cpu.max")
    if not both:
        folder = cgroup / "cpu"
        both = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    try:
        quota, period = map(int, both)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _words(file: Path) -> list[str]:
    try:
        with file.open() as opened:
            return opened.read(_LONGEST).split()
    except (OSError, UnicodeDecodeError):  # another system, or another version
        return []
