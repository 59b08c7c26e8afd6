"""Samplers that use the results of the steps before.

Each function takes (denoise, x, sigmas, noise, options), as in `one_step`. Formulas: Liu et al.,
2022 (linear multistep); Lu et al., 2022 (DPM-Solver++), and their stochastic form.
"""

from collections import deque
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from engine.sampling.step_options import (
    Denoise,
    StepNoise,
    StepOptions,
    exponential_step,
    slope,
)

Numbers = npt.NDArray[np.float64]

LMS_ORDER = 4
# exact for polynomials of twice this degree; the ones of LMS have degree 3
_PLACES, _WEIGHTS = np.polynomial.legendre.leggauss(LMS_ORDER)


def lms(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, _: StepNoise, _options: StepOptions
) -> torch.Tensor:
    """A polynomial through the last four slopes, integrated over the step."""
    slopes: deque[torch.Tensor] = deque(maxlen=LMS_ORDER)  # the newest first
    for number, (sigma, _following) in enumerate(pairwise(sigmas)):
        slopes.appendleft(slope(x, sigma, denoise(x, sigma)))
        known = sigmas[number + 1 - len(slopes) : number + 1].flip(0).double().numpy()
        factors = lms_factors(known, float(sigmas[number + 1]))
        x = x + sum(float(factor) * one for factor, one in zip(factors, slopes, strict=True))
    return x


def lms_factors(known: Numbers, end: float) -> Numbers:
    """The factor of each slope: its Lagrange polynomial, integrated from `known[0]` to `end`."""
    half = (end - known[0]) / 2
    places = known[0] + half * (_PLACES + 1)
    factors = []
    for one in range(len(known)):
        others = np.delete(known, one)
        shares = (places[:, None] - others) / (known[one] - others)
        factors.append(half * (_WEIGHTS * shares.prod(1)).sum())
    return np.array(factors)


def dpmpp_2m(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, _: StepNoise, _options: StepOptions
) -> torch.Tensor:
    """DPM-Solver++(2M): the denoised picture is continued in a straight line."""
    before, last = None, None
    for sigma, following in pairwise(sigmas):
        denoised = straight = denoise(x, sigma)
        width = (sigma / following).log()
        if before is not None and last is not None and following > 0:
            straight = denoised + width / (2 * last) * (denoised - before)
        x = exponential_step(x, straight, sigma, following)
        before, last = denoised, width
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: StepNoise,
    options: StepOptions,
    *,
    heun: bool = False,
) -> torch.Tensor:
    """DPM-Solver++(2M) for stochastic equations, in its midpoint or Heun form."""
    before, last = None, None
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            return denoised
        width = (sigma / following).log()
        all_width = width * (1 + options.eta)  # including what the noise brings back
        grown = -(-all_width).expm1()
        x = (-all_width).exp() * x + grown * denoised
        if before is not None and last is not None:
            change = (denoised - before) * width / last
            x = x + (1 - grown / all_width if heun else grown / 2) * change
        x = x + _sde_noise(sigma, following, width, noise, options)
        before, last = denoised, width
    return x


def dpmpp_2m_sde_heun(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver++(2M) for stochastic equations in its Heun form."""
    return dpmpp_2m_sde(denoise, x, sigmas, noise, options, heun=True)


def _sde_noise(
    sigma: torch.Tensor,
    following: torch.Tensor,
    width: torch.Tensor,
    noise: StepNoise,
    options: StepOptions,
) -> torch.Tensor:
    if not options.eta:
        return torch.zeros(())
    size = following * (-(-2 * options.eta * width).expm1()).sqrt()
    return noise(sigma, following) * size * options.s_noise


def dpmpp_3m_sde(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """DPM-Solver++(3M) for stochastic equations: a parabola through the last three pictures."""
    pictures: deque[torch.Tensor] = deque(maxlen=3)  # the newest first
    widths: deque[torch.Tensor] = deque(maxlen=2)
    for sigma, following in pairwise(sigmas):
        pictures.appendleft(denoise(x, sigma))
        if following == 0:
            return pictures[0]
        width = (sigma / following).log()
        all_width = width * (1 + options.eta)
        grown = -(-all_width).expm1()
        x = (-all_width).exp() * x + grown * pictures[0]
        first, second = _derivatives(pictures, [one / width for one in widths])
        second_share = 1 - grown / all_width
        x = x + second_share * first - (second_share / all_width - 0.5) * second
        x = x + _sde_noise(sigma, following, width, noise, options)
        widths.appendleft(width)
    return x


def _derivatives(
    pictures: deque[torch.Tensor], ratios: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and second differences at the newest picture; `ratios` are the widths before it,
    in widths of this step.
    """
    zero = torch.zeros(())
    if not ratios:
        return zero, zero
    newest = (pictures[0] - pictures[1]) / ratios[0]
    if len(ratios) == 1:
        return newest, zero
    older = (pictures[1] - pictures[2]) / ratios[1]
    second = (newest - older) / (ratios[0] + ratios[1])
    return newest + second * ratios[0], second
