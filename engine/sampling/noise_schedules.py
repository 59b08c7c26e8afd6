"""The noise levels ("sigmas") of a picture's steps, as A1111 computes them with k-diffusion.

Each function returns `steps` of them, the largest first, without the 0 after the last one.
A "time" is a position among the 1000 training levels; between two levels, log(sigma) is linear.
"""

import math

import torch

TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LAST = TRAINING_STEPS - 1

_betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS) ** 2
_alphas = torch.cumprod(1 - _betas, 0)
LEVELS = ((1 - _alphas) / _alphas) ** 0.5  # the training sigmas, the smallest first
SMALLEST, LARGEST = LEVELS[0].item(), LEVELS[-1].item()


def sigmas_at(times: torch.Tensor) -> torch.Tensor:
    """The sigmas at these times."""
    below, logs = times.floor().long(), LEVELS.log()
    above = times.ceil().long()
    return torch.lerp(logs[below], logs[above], times.frac()).exp()


def times_of(sigmas: torch.Tensor) -> torch.Tensor:
    """The times of these sigmas, which are the model's input."""
    logs, log_sigmas = LEVELS.log(), sigmas.log()
    below = (torch.searchsorted(logs, log_sigmas, right=True) - 1).clamp(0, LAST - 1)
    fraction = (log_sigmas - logs[below]) / (logs[below + 1] - logs[below])
    return below + fraction.clamp(0, 1)


def uniform(steps: int) -> torch.Tensor:
    """Equal distances in time, both ends included."""
    return sigmas_at(torch.linspace(LAST, 0, steps))


def sgm_uniform(steps: int) -> torch.Tensor:
    """Equal distances in time; the smallest level would be the next step."""
    return sigmas_at(torch.linspace(LAST, 0, steps + 1)[:-1])


def karras(steps: int, rho: float = 7.0) -> torch.Tensor:
    """Equal distances in the rho-th root of sigma (Karras et al., 2022)."""
    roots = torch.linspace(LARGEST ** (1 / rho), SMALLEST ** (1 / rho), steps)
    return roots**rho


def exponential(steps: int) -> torch.Tensor:
    """Equal distances in log(sigma)."""
    return torch.linspace(math.log(LARGEST), math.log(SMALLEST), steps).exp()
