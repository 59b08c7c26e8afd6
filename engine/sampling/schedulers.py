"""diffusers' schedulers, changed to take the same steps as A1111.

In many combinations, diffusers' own noise levels differ from k-diffusion's, the times are rounded,
and the last step ends differently. The arithmetic of a step is the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from engine.sampling.noise_schedules import (
    LAST,
    LEVELS,
    TRAINING_STEPS,
    sgm_uniform,
    times_of,
)

Sigmas = Callable[[int], torch.Tensor]


def following(base: type, sigmas: Sigmas) -> Any:  # noqa: ANN401 - diffusers
    """The diffusers class `base`, with the noise levels from `sigmas`.

    A class that calls the model twice per step must be created with `use_karras_sigmas`.
    """
    return type(base.__name__, (_Follows, base), {"wanted": staticmethod(sigmas)})


def in_single_precision(base: Any) -> Any:  # noqa: ANN401 - diffusers
    """The scheduler class `base`, with steps that compute and draw noise in single precision.

    diffusers draws the noise of a step in the precision of the UNet's output. In half precision the
    same seed gives other numbers, so a GPU would draw another picture than the CPU and A1111.
    """

    @functools.wraps(base.step)  # the pipeline passes only the parameters that it finds there
    def step(
        self: Any,  # noqa: ANN401
        model_output: torch.Tensor,
        timestep: Any,  # noqa: ANN401
        sample: torch.Tensor,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        kwargs["return_dict"] = False  # as the pipeline asks
        made = base.step(self, model_output.float(), timestep, sample.float(), **kwargs)
        return (made[0].to(sample.dtype), *made[1:])

    return type(base.__name__, (base,), {"step": step})


class _Follows:
    """A mixin for a diffusers class: `wanted` returns the levels for a number of steps."""

    wanted: Sigmas
    levels = LEVELS  # the training sigmas
    timesteps: torch.Tensor
    sigmas: torch.Tensor
    init_noise_sigma: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None, *rest: Any) -> None:  # noqa: ANN401
        """Called by the pipeline; some classes call it in their constructor, with `rest`."""
        super().set_timesteps(num_inference_steps, device, *rest)  # type: ignore[misc]
        if len(self.timesteps) == num_inference_steps:
            levels = self.wanted(num_inference_steps)
            self.sigmas = torch.cat([levels, levels.new_zeros(1)])
            self.timesteps = times_of(levels, self.levels).to(device)
            if isinstance(self, diffusers.DPMSolverMultistepScheduler):
                # diffusers starts with noise of scale 1, k-diffusion scales it by the first level
                self.init_noise_sigma = (levels[0] / (levels[0] ** 2 + 1) ** 0.5).item()

    def _convert_to_karras(self, in_sigmas: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401, ARG002
        """Replaces diffusers' computation of the levels; it then adds each step's second call."""
        return self.wanted(self.num_inference_steps).numpy()  # type: ignore[attr-defined]


def compvis_times(steps: int) -> torch.Tensor:
    """The times of A1111's samplers that are not from k-diffusion, the smallest first.

    There may be more than `steps`: their distance is 1000 // steps, rounded down. Raises ValueError
    for more than 1000 steps, the same as A1111.
    """
    if steps > TRAINING_STEPS:
        raise ValueError(f"this sampler takes {TRAINING_STEPS} steps at most, not {steps}")
    times = torch.arange(0, TRAINING_STEPS, TRAINING_STEPS // steps) + 1
    return times.clamp(max=LAST)


def _moves(steps: int) -> torch.Tensor:
    """The times at which DDIM and PLMS call the model: all but the smallest, where they end.

    For a single step there is none: A1111 then decodes the noise.
    """
    return compvis_times(steps)[1:].flip(0)


class Ddim(diffusers.DDIMScheduler):
    """DDIM; `eta` is set here, not by the pipeline."""

    eta = 0.0

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # noqa: ANN401
        """Called by the pipeline."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        self.timesteps = _moves(num_inference_steps).to(device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Called by the pipeline."""
        kwargs |= {"eta": self.eta, "generator": generator}
        return super().step(model_output, timestep, sample, **kwargs)  # type: ignore[misc]


class Plms(diffusers.PNDMScheduler):
    """PLMS."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # noqa: ANN401
        """Called by the pipeline. The first step calls the model twice."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        moves = _moves(num_inference_steps)
        second = (moves[:1] - TRAINING_STEPS // num_inference_steps).clamp(min=1)
        self.timesteps = torch.cat([moves[:1], second, moves[1:]]).to(device)


class UniPc(diffusers.UniPCMultistepScheduler):
    """UniPC; A1111's ends at the smallest training level, not at 0."""

    levels = LEVELS  # the training sigmas

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # noqa: ANN401
        """Called by the pipeline."""
        steps = len(compvis_times(num_inference_steps))
        super().set_timesteps(steps, device=device)  # type: ignore[misc]
        levels = sgm_uniform(steps, self.levels)
        self.sigmas = torch.cat([levels, self.levels[:1]])
        self.timesteps = times_of(levels, self.levels).to(device)


class Lcm(diffusers.LCMScheduler):
    """LCM; it uses some of every 20th time, ending with the smallest of them."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # noqa: ANN401
        """Called by the pipeline."""
        super().set_timesteps(1, device)  # type: ignore[misc]
        count = self.config.original_inference_steps  # type: ignore[attr-defined]
        distance = TRAINING_STEPS // count
        places = torch.linspace(count - 1, 0, num_inference_steps).round().long()
        self.num_inference_steps = num_inference_steps
        self.timesteps = (places * distance + distance - 1).to(device)
