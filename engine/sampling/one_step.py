"""Samplers whose steps do not remember the steps before them.

Each function takes (denoise, x, sigmas, noise, options): `x` is the picture with noise of the first
sigma, the last sigma is 0. Formulas: Karras et al., 2022 (Euler, Heun, churn); Lu et al., 2022
(DPM-Solver-2, DPM-Solver++); Song et al., 2023 (consistency models); Xu et al., 2023 (Restart).
"""

from itertools import pairwise

import torch

from engine.sampling.noise_schedules import karras
from engine.sampling.step_options import (
    Denoise,
    StepNoise,
    StepOptions,
    ancestral,
    exponential_step,
    slope,
)

MOST_CHURN = 2**0.5 - 1


def _churn(
    x: torch.Tensor,
    sigma: torch.Tensor,
    steps: int,
    noise: StepNoise,
    options: StepOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture with more noise, and its sigma. The noise is drawn even if none is added."""
    drawn = noise(sigma, sigma) * options.s_noise
    inside = options.s_tmin <= sigma <= options.s_tmax
    gamma = min(options.s_churn / steps, MOST_CHURN) if inside else 0.0
    if gamma <= 0:
        return x, sigma
    higher = sigma * (gamma + 1)
    return x + drawn * (higher**2 - sigma**2) ** 0.5, higher


def euler(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """Straight steps along the slope."""
    for sigma, following in pairwise(sigmas):
        x, higher = _churn(x, sigma, len(sigmas) - 1, noise, options)
        x = x + slope(x, higher, denoise(x, higher)) * (following - higher)
    return x


def heun(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """The mean of the slopes at the beginning and at the end of the step."""
    for sigma, following in pairwise(sigmas):
        x, higher = _churn(x, sigma, len(sigmas) - 1, noise, options)
        x = _heun_step(denoise, x, higher, following)
    return x


def _heun_step(
    denoise: Denoise, x: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    first = slope(x, sigma, denoise(x, sigma))
    end = x + first * (following - sigma)
    if following == 0:
        return end
    second = slope(end, following, denoise(end, following))
    return x + (first + second) / 2 * (following - sigma)


def _midpoint_step(
    denoise: Denoise, x: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """The slope in the middle of the step, on the scale of log(sigma)."""
    first = slope(x, sigma, denoise(x, sigma))
    if following == 0:
        return x + first * (following - sigma)
    middle = sigma.log().lerp(following.log(), 0.5).exp()
    half = x + first * (middle - sigma)
    return x + slope(half, middle, denoise(half, middle)) * (following - sigma)


def dpm_2(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver-2."""
    for sigma, following in pairwise(sigmas):
        x, higher = _churn(x, sigma, len(sigmas) - 1, noise, options)
        x = _midpoint_step(denoise, x, higher, following)
    return x


def euler_ancestral(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """Euler to a smaller sigma, and noise back up. A1111 passes no `s_noise` to it."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral(sigma, following, options.eta)
        x = x + slope(x, sigma, denoise(x, sigma)) * (down - sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpm_2_ancestral(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver-2 to a smaller sigma, and noise back up."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral(sigma, following, options.eta)
        x = _midpoint_step(denoise, x, sigma, down)
        if down > 0:
            x = x + noise(sigma, following) * options.s_noise * up
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver++(2S) to a smaller sigma, and noise back up."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral(sigma, following, options.eta)
        denoised = denoise(x, sigma)
        if down > 0:
            middle = (sigma * down) ** 0.5
            denoised = denoise(exponential_step(x, denoised, sigma, middle), middle)
        x = exponential_step(x, denoised, sigma, down)
        if following > 0:
            x = x + noise(sigma, following) * options.s_noise * up
    return x


def dpmpp_sde(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver++ for stochastic equations: noise in the middle of the step and at its end."""
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            return exponential_step(x, denoised, sigma, following)
        middle = (sigma * following) ** 0.5
        for end in (middle, following):
            down, up = ancestral(sigma, end, options.eta)
            moved = exponential_step(x, denoised, sigma, down)
            moved = moved + noise(sigma, end) * options.s_noise * up
            if end is middle:
                denoised = denoise(moved, middle)
        x = moved
    return x


def lcm(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, _: StepOptions
) -> torch.Tensor:
    """Latent consistency models: the denoised picture with new noise."""
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        if following > 0:
            x = x + following * noise(sigma, following)
    return x


def restart(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, _: StepOptions
) -> torch.Tensor:
    """Heun, with jumps back to sigma 2 from 20 steps on. A1111 passes no `s_noise` to it."""
    before = sigmas[0]
    for sigma, following in restart_steps(sigmas):
        if before < sigma:
            x = x + noise(before, sigma) * (sigma**2 - before**2) ** 0.5
        x = _heun_step(denoise, x, sigma, following)
        before = following
    return x


RESTART_FROM, RESTART_TO = 0.1, 2.0  # sigmas
FEWEST_FOR_ONE, FEWEST_FOR_TWO = 20, 36  # steps


def restart_steps(sigmas: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The (sigma, next sigma) of all steps; the jumps take some of the steps for themselves."""
    steps = len(sigmas) - 1
    if steps < FEWEST_FOR_ONE:
        return list(pairwise(sigmas))
    length, times = (9, 1) if steps < FEWEST_FOR_TWO else (steps // 4, 2)
    smallest, largest = sigmas[-2].item(), sigmas[0].item()
    down = karras(steps - length * times, None, smallest, largest)
    sigmas = torch.cat([down, down.new_zeros(1)])
    low, high = (int((sigmas - sigma).abs().argmin()) for sigma in (RESTART_FROM, RESTART_TO))
    found = list(pairwise(sigmas))
    if 0 < low <= len(found) and high < low:
        again = karras(length + 1, None, sigmas[low].item(), sigmas[high].item())
        found[low:low] = [*pairwise(again)] * times
    return found
