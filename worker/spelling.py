"""Finds the known name that a misspelt one probably means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_matches(value: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` known names that look like the value, in any case; the nearest first."""
    by_folded = {name.casefold(): name for name in sorted(known)}
    hits = difflib.get_close_matches(value.casefold(), by_folded, count, cutoff=0.5)
    return [by_folded[hit] for hit in hits]
