"""The noise levels ("sigmas") of a picture's steps, as A1111 computes them with k-diffusion.

Each schedule returns `steps` of them, the largest first, without the 0 after the last one;
`levels` are the training sigmas.
A "time" is a position among the 1000 training levels; between two levels, log(sigma) is linear.
"""

import math

import torch

TRAINING_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LAST = TRAINING_STEPS - 1

# what A1111 puts in place of 0, with which no sigma could be computed
_LAST_ALPHA = 4.8973451890853435e-08


def _training_alphas() -> torch.Tensor:
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def _with_zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """The schedule that ends in pure noise (Lin et al., 2023, algorithm 1)."""
    roots = alphas.sqrt()
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return torch.cat([shifted[:-1] ** 2, torch.tensor([_LAST_ALPHA])])


ALPHAS = _training_alphas()  # the shares of the picture in the training steps
ZERO_SNR_ALPHAS = _with_zero_terminal_snr(ALPHAS)


def levels_of(alphas: torch.Tensor) -> torch.Tensor:
    """The training sigmas, the smallest first."""
    return ((1 - alphas) / alphas) ** 0.5


LEVELS = levels_of(ALPHAS)


def sigmas_at(times: torch.Tensor, levels: torch.Tensor = LEVELS) -> torch.Tensor:
    """The sigmas at these times."""
    below, logs = times.floor().long(), levels.log()
    above = times.ceil().long()
    return torch.lerp(logs[below], logs[above], times.frac()).exp()


def times_of(sigmas: torch.Tensor, levels: torch.Tensor = LEVELS) -> torch.Tensor:
    """The times of these sigmas, which are the model's input."""
    logs, log_sigmas = levels.log(), sigmas.log()
    below = (torch.searchsorted(logs, log_sigmas, right=True) - 1).clamp(0, LAST - 1)
    fraction = (log_sigmas - logs[below]) / (logs[below + 1] - logs[below])
    return below + fraction.clamp(0, 1)


def uniform(steps: int, levels: torch.Tensor = LEVELS) -> torch.Tensor:
    """Equal distances in time, both ends included."""
    return sigmas_at(torch.linspace(LAST, 0, steps), levels)


def sgm_uniform(steps: int, levels: torch.Tensor = LEVELS) -> torch.Tensor:
    """Equal distances in time; the smallest level would be the next step."""
    return sigmas_at(torch.linspace(LAST, 0, steps + 1)[:-1], levels)


def karras(steps: int, levels: torch.Tensor = LEVELS, rho: float = 7.0) -> torch.Tensor:
    """Equal distances in the rho-th root of sigma (Karras et al., 2022)."""
    smallest, largest = levels[0].item(), levels[-1].item()
    roots = torch.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps)
    return roots**rho


def exponential(steps: int, levels: torch.Tensor = LEVELS) -> torch.Tensor:
    """Equal distances in log(sigma)."""
    return torch.linspace(math.log(levels[-1].item()), math.log(levels[0].item()), steps).exp()
