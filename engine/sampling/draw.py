"""One latent picture: from noise (txt2img), or from a picture (img2img and highres fix)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from engine.sampling import noise_schedules
from engine.sampling.denoiser import Denoiser, Guidance, Mask, Model, Stopped
from engine.sampling.noise import BrownianNoise, Noise
from engine.sampling.noise_schedules import TRAINING_STEPS, Levels
from engine.sampling.samplers import Sampler, Scheduler, SigmaOptions
from engine.sampling.step_options import StepNoise, StepOptions
from engine.sampling.timesteps import TimePath

MOST_DENOISING = 0.999


@dataclass(frozen=True)
class Sampling:
    """How a latent picture is made."""

    sampler: Sampler
    scheduler: Scheduler
    steps: int
    guidance: Guidance = field(default_factory=Guidance)
    step_options: StepOptions = field(default_factory=StepOptions)
    sigma_options: SigmaOptions = field(default_factory=SigmaOptions)
    sgm_noise_multiplier: bool = False
    zero_terminal_snr: bool = False
    batch_determinism: bool = True  # of the Brownian noise, see `BrownianNoise`

    @property
    def levels(self) -> Levels:
        """The training levels for this sampler."""
        return noise_schedules.training_levels(
            zero_terminal_snr=self.zero_terminal_snr, lcm=self.sampler.is_lcm
        )

    def sigmas(self, steps: int) -> torch.Tensor:
        """The sigmas of a picture of this many steps, with the 0 after them."""
        return self.sampler.sigmas(self.scheduler, steps, self.levels, self.sigma_options)

    def times(self, steps: int) -> torch.Tensor:
        """The times of a sampler that is not from k-diffusion, the smallest first."""
        discards = self.sigma_options.always_discard_next_to_last_sigma
        return noise_schedules.compvis_times(steps + discards)


@dataclass(frozen=True)
class Start:
    """A latent picture to begin with, and how much of it is made anew.

    With `fix_steps`, as many steps are made as were asked for; otherwise the share `denoising` of
    them. The noise is multiplied by `noise_multiplier`, and `extra_noise` times added once more.
    """

    latent: torch.Tensor
    denoising: float
    fix_steps: bool = False
    noise_multiplier: float = 1.0
    extra_noise: float = 0.0

    def steps(self, asked: int) -> tuple[int, int]:
        """The steps of the whole way, and the ones of it that are made, minus 1."""
        share = min(self.denoising, MOST_DENOISING)
        if self.fix_steps:
            return (int(asked / share) if self.denoising > 0 else 0), asked - 1
        return asked, int(share * asked)


def _never(_done: int, _steps: int) -> bool:
    return False


def _keep(model: Model, _share: float) -> Model:
    return model


@dataclass(frozen=True)
class Watch:
    """What happens beside the sampling: progress, stopping, and the change to a refiner."""

    on_step: Callable[[int, int], bool] = _never
    switch: Callable[[Model, float], Model] = _keep


def from_noise(
    model: Model, sampling: Sampling, noise: Noise, watch: Watch | None = None
) -> torch.Tensor:
    """A latent picture (1, channels, height, width); if it is stopped, it is unfinished."""
    levels, steps = sampling.levels, sampling.steps
    x = noise.first()
    run = _Run(model, sampling, noise, steps=steps, watch=watch)
    if sampling.sampler.steps_over_times:
        return run.over_times(x, sampling.times(steps), is_whole=True)
    sigmas = sampling.sigmas(steps)
    first = sigmas[0]
    x = x * (torch.sqrt(1.0 + first**2) if sampling.sgm_noise_multiplier else first)
    return run.over_sigmas(x, sigmas, sigmas, (levels.largest, levels.smallest))


def from_picture(
    model: Model,
    sampling: Sampling,
    noise: Noise,
    start: Start,
    *,
    mask: Mask | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """A latent picture made from another one, which stays as it is where the mask keeps it."""
    steps, made = start.steps(sampling.steps)
    run = _Run(model, sampling, noise, steps=made + 1, watch=watch, mask=mask)
    latent = start.latent.float()
    drawn = noise.first() * start.noise_multiplier
    if sampling.sampler.steps_over_times:
        times = sampling.times(steps)
        alpha = sampling.levels.alphas[times[made]]
        x = latent * alpha.sqrt() + drawn * (1 - alpha).sqrt()
        x = x + drawn * start.extra_noise * alpha.sqrt()
        result = run.over_times(x, times[:made], is_whole=False)
    else:
        sigmas = sampling.sigmas(steps)
        rest = sigmas[max(steps - made - 1, 0) :] if steps else sigmas
        x = latent + drawn * rest[0] + drawn * start.extra_noise
        ends = (rest[0].item(), rest[-2].item() if len(rest) > 1 else 0.0)
        result = run.over_sigmas(x, rest, sigmas, ends)
    return mask.blend(result) if mask else result


class _Run:
    """The sampler's function with its denoiser, noise and options."""

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        noise: Noise,
        *,
        steps: int,
        watch: Watch | None,
        mask: Mask | None = None,
    ) -> None:
        watch = watch or Watch()
        self._sampling, self._noise, self._watch, self._steps = sampling, noise, watch, steps
        self._denoiser = Denoiser(
            model,
            sampling.guidance,
            sampling.levels,
            mask=mask,
            on_call=self._after_call,
            switch=watch.switch,
        )

    def _after_call(self, number: int) -> bool:
        calls = self._sampling.sampler.calls(self._steps)
        return self._watch.on_step(min(number * self._steps // calls, self._steps), self._steps)

    def over_sigmas(
        self,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        all_sigmas: torch.Tensor,
        ends: tuple[float, float],
    ) -> torch.Tensor:
        """`all_sigmas` are the ones of the whole way, over which Brownian noise is spread."""
        if len(sigmas) == 1:  # no step is left
            return x
        noise: StepNoise = self._noise
        sampler = self._sampling.sampler
        if sampler.options.get("brownian_noise"):
            same = self._sampling.batch_determinism
            spread = all_sigmas if same else sigmas
            noise = BrownianNoise(self._noise, spread, batch_determinism=same)
        options = replace(self._sampling.step_options, ends=ends)
        return self._stoppable(
            x, lambda: sampler.function(self._denoiser.at_sigma, x, sigmas, noise, options)
        )

    def over_times(self, x: torch.Tensor, times: torch.Tensor, *, is_whole: bool) -> torch.Tensor:
        """`times` are the smallest first; `is_whole` if they begin with pure noise."""
        if not len(times):
            return x
        options = self._sampling.step_options
        if not is_whole:
            start = times[-1] / TRAINING_STEPS + 1 / TRAINING_STEPS
            options = replace(options, uni_pc_start=start.item())
        path = TimePath(times, self._sampling.levels)
        function = self._sampling.sampler.function
        return self._stoppable(
            x, lambda: function(self._denoiser.at_time, x, path, self._noise, options)
        )

    def _stoppable(self, x: torch.Tensor, sample: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result, or the last picture that the model saw, before any `x`."""
        try:
            return sample()
        except Stopped:
            return x if self._denoiser.picture is None else self._denoiser.picture
