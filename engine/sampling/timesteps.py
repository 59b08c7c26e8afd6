"""DDIM and PLMS: A1111's samplers that step over the training times instead of sigmas.

Each function takes (predict, x, path, noise, options); `predict` gives the noise in the picture at
a time. Formulas: Song et al., 2020 (DDIM); Liu et al.,
2022 (PLMS).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from engine.sampling.noise_schedules import Levels
from engine.sampling.step_options import StepNoise, StepOptions

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Adams-Bashforth: the factors of the last predictions, the newest first
_FACTORS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class TimePath:
    """The times of the steps, the smallest first, and the training levels that they count."""

    times: torch.Tensor
    levels: Levels

    def moves(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(time, next time, share of the picture now, share after the step) of all steps.

        There is one step less than there are times: for a single time there is none, and A1111
        decodes the noise.
        """
        for time, following in pairwise(self.times.flip(0)):
            yield time, following, self.levels.alphas[time], self.levels.alphas[following]


def _without_noise(x: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def ddim(
    predict: Predict,
    x: torch.Tensor,
    path: TimePath,
    noise: StepNoise,
    options: StepOptions,
) -> torch.Tensor:
    """Implicit models; `eta` 1 is DDPM. The noise is drawn even if none is added."""
    for time, following, alpha, next_alpha in path.moves():
        found = predict(x, time)
        ratio = (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
        size = options.eta * ratio.sqrt()
        direction = (1 - next_alpha - size**2).sqrt() * found
        picture = _without_noise(x, found, alpha)
        x = next_alpha.sqrt() * picture + direction + size * noise(time, following)
    return x


def plms(
    predict: Predict,
    x: torch.Tensor,
    path: TimePath,
    _: StepNoise,
    _options: StepOptions,
) -> torch.Tensor:
    """DDIM with a prediction from the last four; the first step calls the model twice."""
    known: deque[torch.Tensor] = deque(maxlen=len(_FACTORS))  # the newest first
    for time, following, alpha, next_alpha in path.moves():
        found = predict(x, time)
        known.appendleft(found)
        if len(known) == 1:
            ahead = _ddim_step(x, found, alpha, next_alpha)
            better = (found + predict(ahead, following)) / 2
        else:
            factors = _FACTORS[len(known) - 1]
            better = sum(
                (factor * one for factor, one in zip(factors, known, strict=True)),
                torch.zeros_like(x),
            )
        x = _ddim_step(x, better, alpha, next_alpha)
    return x


def _ddim_step(
    x: torch.Tensor, found: torch.Tensor, alpha: torch.Tensor, next_alpha: torch.Tensor
) -> torch.Tensor:
    picture = _without_noise(x, found, alpha)
    return next_alpha.sqrt() * picture + (1 - next_alpha).sqrt() * found
