"""What all samplers have in common: the types of their arguments, and the size of their noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

# (picture with noise, sigma) -> picture without noise
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# (sigma, next sigma) -> noise of size 1 for this step
StepNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class StepOptions:
    """A1111's options of the samplers; each sampler reads the ones that A1111 passes to it.

    `ends` are the largest and the smallest sigma, for the samplers that choose their own steps,
    and `uni_pc_start` is the time from 0.001 to 1 at which UniPC starts.
    """

    eta: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    ends: tuple[float, float] = (1.0, 0.1)
    uni_pc_start: float = 1.0
    uni_pc_variant: str = "bh1"
    uni_pc_skip_type: str = "time_uniform"
    uni_pc_order: int = 3
    uni_pc_lower_order_final: bool = True


def ancestral(
    sigma: torch.Tensor, following: torch.Tensor, eta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sigma to go down to, and the size of the noise that leads up to `following` again."""
    if not eta:
        return following, torch.zeros_like(following)
    up = eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
    up = torch.minimum(following, up)
    return (following**2 - up**2) ** 0.5, up


def slope(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """The derivative of the picture by sigma."""
    return (x - denoised) / sigma


def exponential_step(
    x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """The step that is exact for a denoised picture that does not change (DPM-Solver++)."""
    ratio = following / sigma
    return ratio * x + (1 - ratio) * denoised
