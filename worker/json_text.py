"""JSON from outside: what is nested too deeply is none. Pure.

Python reads JSON of almost 1,000 levels. Then each function that walks over the value or writes it
may come to the end of Python's stack. No JSON that the worker understands has 20 levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MOST_LEVELS = 100

Json = Any


def loads(text: str | bytes | bytearray) -> Json:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or has more than `MOST_LEVELS` levels.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_levels(text, value)
    return value


_TOO_DEEP = "it is nested too deep"


def check_levels(text: str | bytes | bytearray, value: Json) -> None:
    """Raise ValueError if the value of this JSON has more than `MOST_LEVELS` levels."""
    marks = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, marks)) <= MOST_LEVELS:  # type: ignore[arg-type]
        return
    level: list[Json] = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for one in level for inner in _inside(one) if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _inside(value: Json) -> Iterable[Json]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
