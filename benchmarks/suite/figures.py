"""What a row finds: figures, each with its rival or limit, and curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Goal:
    """What a figure should be.

    Attributes:
        limit: the value that counts as met.
        of: "ratio" (ours divided by the rival's) or "value" (ours alone, in the figure's unit).
        at_least: whether more is better.
    """

    limit: float
    of: str = "ratio"
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        """Whether the value is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what is measured, with its size ("CPU of a warm job, 4 pictures of 1024 x 1024").
        unit: of `ours` and `others`, such as "ms" or "MB".
        ours: a value for each round.
        others: the rival's or the limit's values in the same rounds; empty if there is none.
        other: what the rival or the limit is.
        goal: what it should be; None for a figure that only explains another one.
        why_missed: the reason, shown only while the goal is missed.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    others: tuple[float, ...] = ()
    other: str = ""
    goal: Goal | None = None
    why_missed: str = ""

    @property
    def our_value(self) -> float:
        """The median of our rounds."""
        return statistics.median(self.ours)

    @property
    def other_value(self) -> float | None:
        """The median of the rival's rounds."""
        return statistics.median(self.others) if self.others else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours divided by the rival's, for each round: both met the same load.

        Empty if the rival's value is 0 in a round: no ratio says anything then.
        """
        if 0 in self.others:
            return ()
        return tuple(a / b for a, b in zip(self.ours, self.others, strict=False))

    @property
    def judged(self) -> float:
        """The value that the goal is about."""
        if self.goal is not None and self.goal.of == "ratio":
            return statistics.median(self.ratios)
        return self.our_value

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        return None if self.goal is None else self.goal.is_met(self.judged)


@dataclass(frozen=True)
class Curve:
    """How something grows: one plot.

    Attributes:
        name: the plot's title, unique in the suite.
        lines: for each side its points (x, y), in order.
        log_x: whether x is shown on a logarithmic scale.
    """

    name: str
    x: str
    y: str
    lines: Mapping[str, tuple[tuple[float, float], ...]]
    log_x: bool = False


@dataclass
class Found:
    """All that one row has found, and how busy the machine was before it."""

    row: str
    title: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    busy_cores: float = 0.0
    seconds: float = 0.0


def in_turns(
    rounds: int, ours: Callable[[], float], other: Callable[[], float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure both sides `rounds` times, in turns; the side that begins changes each round.

    A busy machine so slows both sides, and a side cannot gain from what the other one warmed.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            found[side].append((ours, other)[side]())
    return tuple(found[0]), tuple(found[1])
