"""Suggests known names for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_matches(
    value: str, known: Iterable[str], count: int = 3, cutoff: float = 0.5
) -> list[str]:
    """Up to `count` known names similar to the value, ignoring case; the most similar first.

    `cutoff` is how similar they must be: 0 is anything, 1 is the same letters.
    """
    by_folded = {name.casefold(): name for name in sorted(known)}
    hits = difflib.get_close_matches(value.casefold(), by_folded, count, cutoff)
    return [by_folded[hit] for hit in hits]
