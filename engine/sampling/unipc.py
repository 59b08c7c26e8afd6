"""UniPC (Zhao et al., 2023): a predictor and a corrector that share the calls of the model.

The corrector improves the last step with the prediction that the next step needs anyway. A "time"
is 0.001 to 1 here, and `level` the logarithm of picture to noise.
"""

import math
from collections import deque
from dataclasses import dataclass

import torch

from engine.sampling.noise_schedules import LAST, TRAINING_STEPS, Levels
from engine.sampling.step_options import StepNoise, StepOptions
from engine.sampling.timesteps import Predict, TimePath

END = 1 / TRAINING_STEPS  # the last time


class _Schedule:
    """The shares of picture and noise at any time: between training levels, log(alpha) is linear,
    and beyond them it goes on as between the last two.
    """

    def __init__(self, levels: Levels) -> None:
        self._logs = 0.5 * levels.alphas.log()
        self._times = torch.linspace(0.0, 1.0, TRAINING_STEPS + 1)[1:]

    def log_alpha(self, time: torch.Tensor) -> torch.Tensor:
        """The logarithm of the picture's share."""
        return _interpolate(time, self._times, self._logs)

    def shares(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The shares of picture and noise."""
        log = self.log_alpha(time)
        return log.exp(), (1 - (2 * log).exp()).sqrt()

    def level(self, time: torch.Tensor) -> torch.Tensor:
        """log(picture / noise)."""
        log = self.log_alpha(time)
        return log - 0.5 * (1 - (2 * log).exp()).log()

    def time_of(self, level: torch.Tensor) -> torch.Tensor:
        """The time of a level."""
        log = -0.5 * torch.logaddexp(torch.zeros(()), -2 * level)
        return _interpolate(log, self._logs.flip(0), self._times.flip(0))

    def times(self, kind: str, start: float, steps: int) -> torch.Tensor:
        """The `steps` + 1 times from `start` to the end. Raises ValueError for an unknown kind."""
        if kind == "time_uniform":
            return torch.linspace(start, END, steps + 1)
        if kind == "time_quadratic":
            return torch.linspace(start**0.5, END**0.5, steps + 1) ** 2
        if kind != "logSNR":
            raise ValueError(
                f"uni_pc_skip_type must be time_uniform, time_quadratic or logSNR, not {kind!r}"
            )
        first, last = (self.level(torch.tensor(time)).item() for time in (start, END))
        return self.time_of(torch.linspace(first, last, steps + 1))


def _interpolate(place: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    below = (torch.searchsorted(places, place.contiguous()) - 1).clamp(0, LAST - 1)
    low, high = places[below], places[below + 1]
    start, end = values[below], values[below + 1]
    return start + (place - low) * (end - start) / (high - low)


@dataclass(frozen=True)
class _Known:
    """A prediction of the picture, and the level at which it was made."""

    level: torch.Tensor
    picture: torch.Tensor


class _UniPc:
    def __init__(self, predict: Predict, schedule: _Schedule, variant: str) -> None:
        self._predict, self._schedule, self._variant = predict, schedule, variant

    def look(self, x: torch.Tensor, time: torch.Tensor) -> _Known:
        """The picture without noise at a time."""
        # A1111's arithmetic, rounded as there: with v-prediction its fraction is cut off
        found = self._predict(x, (time - 1 / TRAINING_STEPS) * 1000)
        alpha, sigma = self._schedule.shares(time)
        return _Known(self._schedule.level(time), (x - sigma * found) / alpha)

    def step(
        self,
        x: torch.Tensor,
        known: deque[_Known],
        times: tuple[torch.Tensor, torch.Tensor],
        order: int,
        *,
        correct: bool,
    ) -> tuple[torch.Tensor, _Known | None]:
        """The picture after the step, and the prediction that corrected it."""
        alpha, sigma = self._schedule.shares(times[1])
        level = self._schedule.level(times[1])
        last = known[0]
        h = -(level - last.level)
        x = sigma / self._schedule.shares(times[0])[1] * x - alpha * h.expm1() * last.picture
        older = list(known)[1:order]
        ratios = [(last.level - one.level) / h for one in older]  # how far back, in steps
        changes = [
            (one.picture - last.picture) / ratio for one, ratio in zip(older, ratios, strict=True)
        ]
        predicting, correcting = _factors(ratios, h, self._variant)
        drawn = x - alpha * _sum(predicting, changes)
        if not correct:
            return drawn, None
        seen = self.look(drawn, times[1])
        changes.append(seen.picture - last.picture)
        return x - alpha * _sum(correcting, changes), seen


def _sum(factors: list[float], changes: list[torch.Tensor]) -> torch.Tensor:
    return sum(
        (factor * change for factor, change in zip(factors, changes, strict=True)), torch.zeros(())
    )


def _factors(
    ratios: list[torch.Tensor], h: torch.Tensor, variant: str
) -> tuple[list[float], list[float]]:
    """The factors of the changes for the predictor and for the corrector, which has one more.

    Raises ValueError for an unknown variant.
    """
    places = torch.tensor([*map(float, ratios), 1.0])
    if variant == "vary_coeff":
        return _varying(places[:-1], h), _varying_corrector(places, h)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"uni_pc_variant must be bh1, bh2 or vary_coeff, not {variant!r}")
    size = h if variant == "bh1" else h.expm1()
    predicting, correcting = (_solved(some, h, size) for some in (places[:-1], places))
    # for these orders the authors take a half instead of the solution
    half = [0.5 * size.item()]
    return half if len(places) == 2 else predicting, half if len(places) == 1 else correcting  # noqa: PLR2004


def _solved(places: torch.Tensor, h: torch.Tensor, size: torch.Tensor) -> list[float]:
    """The factors with which the step is exact for polynomials."""
    count = len(places)
    if not count:
        return []
    powers = torch.stack([places**power for power in range(count)])
    wanted, rest = [], h.expm1() / h - 1
    for number in range(1, count + 1):
        wanted.append(rest * math.factorial(number) / size)
        rest = rest / h - 1 / math.factorial(number + 1)
    solution = torch.linalg.solve(powers, torch.stack(wanted))
    factors: list[float] = (solution * size).tolist()
    return factors


def _varying(places: torch.Tensor, h: torch.Tensor) -> list[float]:
    """The factors of the predictor that solves for the changes instead of for the step."""
    if not len(places):
        return []
    factors: list[float] = (_weights(len(places), h) @ _inverse(places)).tolist()
    return factors


def _varying_corrector(places: torch.Tensor, h: torch.Tensor) -> list[float]:
    """The factors of the corrector. As in the authors' code, the last row has only one place."""
    count = len(places)
    weights, inverse = _weights(count, h), _inverse(places)
    older = weights[:-1] @ inverse[:-1, :-1]
    return [*older.tolist(), (weights[-1] * inverse[max(count - 2, 0), -1]).item()]


def _weights(count: int, h: torch.Tensor) -> torch.Tensor:
    weights, rest = [], h.expm1()
    for number in range(1, count + 1):
        rest = rest / h - 1 / math.factorial(number)
        weights.append(rest)
    return torch.stack(weights)


def _inverse(places: torch.Tensor) -> torch.Tensor:
    columns = [places**power / math.factorial(power + 1) for power in range(len(places))]
    inverse: torch.Tensor = torch.linalg.inv(torch.stack(columns, 1))
    return inverse


def unipc(
    predict: Predict,
    x: torch.Tensor,
    path: TimePath,
    _: StepNoise,
    options: StepOptions,
) -> torch.Tensor:
    """UniPC of the third order, as many steps as there are times.

    A1111 answers 500 for fewer steps than the order; this takes the order that is possible.
    """
    steps = len(path.times)
    order = min(options.uni_pc_order, steps)
    schedule = _Schedule(path.levels)
    solver = _UniPc(predict, schedule, options.uni_pc_variant)
    moments = schedule.times(options.uni_pc_skip_type, options.uni_pc_start, steps)
    known = deque([solver.look(x, moments[0])], maxlen=order)
    for number in range(1, steps + 1):
        step_order = min(order, number)
        if options.uni_pc_lower_order_final and number >= order:
            step_order = min(order, steps + 1 - number)
        span = (moments[number - 1], moments[number])
        is_last = number == steps and number >= order
        x, seen = solver.step(x, known, span, step_order, correct=not is_last)
        if seen:
            known.appendleft(seen)
    return x
