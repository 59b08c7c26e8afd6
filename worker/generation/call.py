"""A request that the engine computes without a prompt, and the reader of its answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A POST to a route of A1111's API.

    Attributes:
        route: below `/sdapi/v1/`.
        body: its JSON.
        read: gets the answer's JSON, checks that it is what was asked for, and returns what the
            task needs. For an answer of another shape it raises what `answers.reading` knows.
        smaller: the hint for a request that does not fit into the GPU's memory.
    """

    route: str
    body: Mapping[str, Any]
    read: Callable[[Any], T]
    smaller: str
