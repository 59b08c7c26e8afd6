"""DPM fast and DPM adaptive: DPM-Solver of the first to the third order (Lu et al., 2022).

They choose their own steps between the largest and the smallest sigma, and do not go on to 0.
"Time" is -log(sigma) here, and `h` a distance in time.
"""

import math

import torch

from engine.errors import NansException
from engine.sampling.step_options import Denoise, StepNoise, StepOptions, ancestral, slope

# k-diffusion's numbers of the step size control
RELATIVE, ABSOLUTE = 0.05, 0.0078
FIRST_STEP = 0.05
SAFETY = 0.81
ORDER = 3
NEARLY = 1e-5
SMALLEST_ERROR = 1e-8


class _Step:
    """One step from `x` at `start` to `end`; the slopes on the way are computed once."""

    def __init__(
        self, denoise: Denoise, x: torch.Tensor, start: torch.Tensor, end: torch.Tensor
    ) -> None:
        self._denoise, self._x, self._start, self._h = denoise, x, start, end - start
        self._first: torch.Tensor | None = None
        self._between: dict[float, torch.Tensor] = {}

    def _slope(self, x: torch.Tensor, share: float) -> torch.Tensor:
        """The noise in the picture after this share of the step."""
        sigma = (-(self._start + share * self._h)).exp()
        return slope(x, sigma, self._denoise(x, sigma))

    @property
    def noise(self) -> torch.Tensor:
        """The noise in the picture at the beginning of the step."""
        if self._first is None:
            self._first = self._slope(self._x, 0.0)
        return self._first

    def first_order(self, share: float = 1.0) -> torch.Tensor:
        """The picture after this share of the step."""
        h = share * self._h
        sigma = (-(self._start + h)).exp()
        return self._x - sigma * h.expm1() * self.noise

    def _at(self, share: float) -> torch.Tensor:
        """The noise after a share of the step of the first order."""
        if share not in self._between:
            self._between[share] = self._slope(self.first_order(share), share)
        return self._between[share]

    def second_order(self, share: float = 1 / 2) -> torch.Tensor:
        """The picture at the end, with one more slope at `share` of the step."""
        sigma = (-(self._start + self._h)).exp()
        change = self._at(share) - self.noise
        return self.first_order() - sigma / (2 * share) * self._h.expm1() * change

    def third_order(self) -> torch.Tensor:
        """The picture at the end, with two more slopes, at a third and two thirds of the step."""
        one, two = 1 / 3, 2 / 3
        h = two * self._h
        sigma = (-(self._start + h)).exp()
        bent = sigma * (two / one) * (h.expm1() / h - 1) * (self._at(one) - self.noise)
        change = self._slope(self.first_order(two) - bent, two) - self.noise
        sigma = (-(self._start + self._h)).exp()
        return self.first_order() - sigma / two * (self._h.expm1() / self._h - 1) * change

    def of_order(self, order: int) -> torch.Tensor:
        """The picture at the end."""
        return (self.first_order, self.second_order, self.third_order)[order - 1]()


def _down(
    start: torch.Tensor, end: torch.Tensor, last: torch.Tensor, eta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The time to go down to, not beyond `last`, and the size of the noise back up to `end`."""
    if not eta:
        return end, torch.zeros(())
    sigma, following = (-start).exp(), (-end).exp()
    down, _ = ancestral(sigma, following, eta)
    time = torch.minimum(last, -down.log())
    return time, (following**2 - (-time).exp() ** 2).clamp(min=0) ** 0.5


def _times(options: StepOptions) -> tuple[torch.Tensor, torch.Tensor]:
    largest, smallest = (-torch.tensor(sigma).log() for sigma in options.ends)
    return largest, smallest


def dpm_fast(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """As many calls of the model as there are steps: three for most of its own steps."""
    start, last = _times(options)
    calls = len(sigmas) - 1
    times = torch.linspace(start.item(), last.item(), calls // 3 + 2)
    orders = [3] * (calls // 3) + [calls % 3]
    if calls % 3 == 0:
        orders = [3] * (calls // 3 - 1) + [2, 1]
    for order, time, following in zip(orders, times, times[1:], strict=False):
        end, up = _down(time, following, last, options.eta)
        x = _Step(denoise, x, time, end).of_order(order)
        x = x + up * options.s_noise * noise((-time).exp(), (-following).exp())
    return x


def dpm_adaptive(
    denoise: Denoise, x: torch.Tensor, _: torch.Tensor, noise: StepNoise, options: StepOptions
) -> torch.Tensor:
    """Steps as wide as the second and the third order agree. A1111 passes no `s_noise` to it."""
    time, last = _times(options)
    before = x
    width = _StepWidth(order=1.5 if options.eta else ORDER)
    while time < last - NEARLY:
        following = torch.minimum(last, time + width.h)
        end, up = _down(time, following, last, options.eta)
        step = _Step(denoise, x, time, end)
        low, high = step.second_order(1 / 3), step.third_order()
        largest = torch.maximum(low.abs(), before.abs())
        allowed = (RELATIVE * largest).clamp(min=ABSOLUTE)
        error = torch.linalg.vector_norm((low - high) / allowed) / x.numel() ** 0.5
        if not error.isfinite():  # no width would ever be accepted
            raise NansException("A tensor with NaNs was produced in Unet.")
        if width.accepts(error.item()):
            before = low
            x = high + up * noise((-time).exp(), (-following).exp())
            time = following
    return x


class _StepWidth:
    """The width of the next step, from the error of this one (only its integral part)."""

    def __init__(self, order: float) -> None:
        self.h = FIRST_STEP
        self._power = 1 / order

    def accepts(self, error: float) -> bool:
        """Whether the step is good enough; changes the width in any case."""
        factor = 1 + math.atan((1 / (error + SMALLEST_ERROR)) ** self._power - 1)
        self.h *= factor
        return factor >= SAFETY
