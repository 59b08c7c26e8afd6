"""Suggests known names for a misspelt one."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable

_LONGEST = 100  # characters of a name that are compared
_COMPARED = 200  # names that are compared in full: difflib takes up to a millisecond for each


def near_matches(
    value: str, known: Iterable[str], count: int = 3, *, cutoff: float = 0.5
) -> list[str]:
    """Up to `count` known names similar to the value, ignoring case; the most similar first.

    Of many names, only those are compared that share the most pairs of letters with the value.

    Args:
        value: the misspelt name.
        known: any number of names.
        count: how many to return at most.
        cutoff: from 0.0 (anything is similar) to 1.0 (only equal names are).
    """
    by_folded = {name.casefold()[:_LONGEST]: name for name in sorted(known)}
    folded = value.casefold()[:_LONGEST]
    names = list(by_folded)
    if len(names) > _COMPARED:
        pairs = _pairs(folded)
        names = heapq.nlargest(_COMPARED, names, key=lambda name: len(pairs & _pairs(name)))
    hits = difflib.get_close_matches(folded, names, count, cutoff=cutoff)
    return [by_folded[hit] for hit in hits]


def _pairs(text: str) -> set[str]:
    """Every two neighbouring letters."""
    return {text[at : at + 2] for at in range(len(text) - 1)}
