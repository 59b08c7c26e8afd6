"""The noise levels ("sigmas") of a picture's steps, as A1111 computes them with k-diffusion.

A "time" is a position among the 1000 training levels; between two levels, log(sigma) is linear.
"""

import math
from functools import cache

import torch

TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LAST = TRAINING_STEPS - 1
LCM_STEPS = 50  # the levels that LCM models were distilled with: every 20th

# what A1111 puts in place of 0, with which no sigma could be computed
_LAST_ALPHA = 4.8973451890853435e-08


def _training_alphas() -> torch.Tensor:
    """The shares of the picture in the training levels, computed in double precision as in ldm."""
    roots = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, 0).float()


def _with_zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """The schedule that ends in pure noise (Lin et al., 2023, algorithm 1)."""
    roots = alphas.sqrt()
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return torch.cat([shifted[:-1] ** 2, torch.tensor([_LAST_ALPHA])])


class Levels:
    """Training levels, the smallest first: `alphas` are the shares of the picture."""

    def __init__(self, alphas: torch.Tensor) -> None:
        self.alphas = alphas
        self.sigmas = ((1 - alphas) / alphas) ** 0.5
        self._logs = self.sigmas.log()

    @property
    def smallest(self) -> float:
        """The smallest sigma."""
        return self.sigmas[0].item()

    @property
    def largest(self) -> float:
        """The largest sigma, of the noise that a picture starts from."""
        return self.sigmas[-1].item()

    def sigmas_at(self, times: torch.Tensor) -> torch.Tensor:
        """The sigmas at these times."""
        below, above, part = times.floor().long(), times.ceil().long(), times.frac()
        return ((1 - part) * self._logs[below] + part * self._logs[above]).exp()

    def times_of(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The times of these sigmas, which are the model's input."""
        logs = sigmas.log()
        below = torch.searchsorted(self._logs, logs, right=True) - 1
        below = below.clamp(0, len(self._logs) - 2)
        low, high = self._logs[below], self._logs[below + 1]
        part = ((low - logs) / (low - high)).clamp(0, 1)
        return (1 - part) * below + part * (below + 1)


class LcmLevels(Levels):
    """Every 20th of the training levels; a time is one of theirs, never between two."""

    def __init__(self, alphas: torch.Tensor) -> None:
        self._distance = len(alphas) // LCM_STEPS
        super().__init__(alphas[self._distance - 1 :: self._distance])

    def sigmas_at(self, times: torch.Tensor) -> torch.Tensor:
        """The sigmas at these times."""
        places = (times - (self._distance - 1)) / self._distance
        return super().sigmas_at(places.clamp(0, LCM_STEPS - 1))

    def times_of(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The times of the nearest levels."""
        distances = (sigmas.log()[..., None] - self._logs).abs()
        return distances.argmin(-1) * self._distance + self._distance - 1


@cache
def training_levels(*, zero_terminal_snr: bool = False, lcm: bool = False) -> Levels:
    """The levels of Stable Diffusion's training, of the two kinds that A1111 has."""
    alphas = _training_alphas()
    if zero_terminal_snr:
        alphas = _with_zero_terminal_snr(alphas)
    return LcmLevels(alphas) if lcm else Levels(alphas)


# The schedules: `steps` sigmas from the largest to the smallest. The 0 that follows is not in them.


def uniform(steps: int, levels: Levels, _smallest: float, _largest: float) -> torch.Tensor:
    """Equal distances in time, both ends included."""
    first, last = levels.times_of(levels.sigmas[[-1, 0]]).tolist()
    return levels.sigmas_at(torch.linspace(first, last, steps))


def sgm_uniform(steps: int, levels: Levels, smallest: float, largest: float) -> torch.Tensor:
    """Equal distances in time; the smallest level would be the next step."""
    first, last = levels.times_of(torch.tensor([largest, smallest])).tolist()
    return levels.sigmas_at(torch.linspace(first, last, steps + 1)[:-1])


def karras(
    steps: int, _levels: Levels | None, smallest: float, largest: float, rho: float = 7.0
) -> torch.Tensor:
    """Equal distances in the rho-th root of sigma (Karras et al., 2022)."""
    first, last = largest ** (1 / rho), smallest ** (1 / rho)
    sigmas: torch.Tensor = (first + torch.linspace(0, 1, steps) * (last - first)) ** rho
    return sigmas


def exponential(steps: int, _levels: Levels, smallest: float, largest: float) -> torch.Tensor:
    """Equal distances in log(sigma)."""
    return torch.linspace(math.log(largest), math.log(smallest), steps).exp()


def polyexponential(
    steps: int, _levels: Levels, smallest: float, largest: float, rho: float = 1.0
) -> torch.Tensor:
    """The rho-th powers of equal distances, in log(sigma)."""
    ramp = torch.linspace(1, 0, steps) ** rho
    return (ramp * (math.log(largest) - math.log(smallest)) + math.log(smallest)).exp()


def compvis_times(steps: int) -> torch.Tensor:
    """The times of A1111's samplers that are not from k-diffusion, the smallest first.

    There may be more than `steps`: their distance is 1000 // steps, rounded down. Raises ValueError
    for more than 1000 steps, the same as A1111.
    """
    if steps > TRAINING_STEPS:
        raise ValueError(f"this sampler takes {TRAINING_STEPS} steps at most, not {steps}")
    times = torch.arange(0, TRAINING_STEPS, TRAINING_STEPS // steps) + 1
    return times.clamp(max=LAST)
