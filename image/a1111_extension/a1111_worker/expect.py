"""Checks that A1111 is as v1.9.3 has it, before anything of it is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class NotAsExpected(Exception):
    """A1111 differs from v1.9.3 at the place that a part changes; the part must not be used."""


def expect(found: bool, what: str) -> None:
    """Raise an error unless the expected code was found.

    Raises:
        NotAsExpected: it was not found.
    """
    if not found:
        raise NotAsExpected(f"expected that {what}")


def uses(function: Callable[..., Any], *names: str) -> bool:
    """Whether a Python function reads all of these names or has them as constants."""
    code = getattr(function, "__code__", None)
    return code is not None and {*names} <= {*code.co_names, *code.co_varnames, *code.co_consts}
