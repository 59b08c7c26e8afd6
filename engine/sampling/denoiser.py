"""The model as the samplers see it: a function from a picture with noise to one without.

The model is asked twice for each step, with and without the prompt, and the difference is enlarged
(classifier-free guidance). Masks, models with more inputs and stopping are handled here, once for
all samplers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.sampling.conditioning import Conditioning, Embeds, stacked
from engine.sampling.noise_schedules import LcmLevels, Levels

EPSILON, V = "epsilon", "v_prediction"
SIGMA_DATA = 0.5  # of the consistency models


class Stopped(Exception):
    """The picture was stopped; `Denoiser.picture` is how far it is."""


@dataclass(frozen=True)
class Mask:
    """The part of the picture that is made; `kept` is 1 where `original` stays."""

    kept: torch.Tensor
    original: torch.Tensor

    def blend(self, x: torch.Tensor) -> torch.Tensor:
        """`x` where it is made, otherwise the original."""
        return x * (1 - self.kept) + self.original * self.kept


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed.

    From the sigma (or time) `s_min_uncond` down, every second call is made without the negative
    prompt, as with A1111's option of that name.
    """

    cfg_scale: float = 7.0
    s_min_uncond: float = 0.0


@dataclass
class Model:
    """A UNet, its prediction type and its conditioning; a refiner replaces it during the picture.

    `extra` are further input channels: the mask and the masked picture of an inpainting model.
    """

    unet: Any
    prediction: str
    conditioning: Conditioning
    extra: torch.Tensor | None = None

    def predict(self, x: torch.Tensor, time: torch.Tensor, given: Embeds) -> torch.Tensor:
        """The output for each of the prompts in `given`, in single precision."""
        count = len(given.text)
        device, dtype = x.device, self.unet.dtype
        batch = x if self.extra is None else torch.cat([x, self.extra.to(x)], 1)
        added = None
        if given.pooled is not None:
            added = {"text_embeds": given.pooled.to(dtype), "time_ids": given.sizes}
        output = self.unet(
            batch.expand(count, -1, -1, -1).to(dtype),
            time.to(device, torch.float32).expand(count),
            encoder_hidden_states=given.text.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        result: torch.Tensor = output.float()
        return result


class Denoiser:
    """The model with guidance, for one picture.

    `on_call(number)` is called after each call of the model; if it returns true, the next call
    raises Stopped. `switch(model, share)` is asked before each call, with the share of the way that
    is done, and may return another model.
    """

    def __init__(
        self,
        model: Model,
        guidance: Guidance,
        levels: Levels,
        *,
        mask: Mask | None = None,
        on_call: Callable[[int], bool] = lambda _: False,
        switch: Callable[[Model, float], Model] = lambda model, _: model,
    ) -> None:
        self.model, self.guidance, self.levels, self.mask = model, guidance, levels, mask
        self.picture: torch.Tensor | None = None
        self._on_call, self._switch = on_call, switch
        self._calls, self._stopping = 0, False

    def _guided(self, x: torch.Tensor, time: torch.Tensor, noise: float) -> torch.Tensor:
        """The model's output; `noise` is the sigma or time that `s_min_uncond` is compared with."""
        if self._stopping:
            raise Stopped
        self.model = self._switch(self.model, 1 - (self._nearest(time) + 1) / 1000)
        weights = self.model.conditioning.weights
        positive, negative = self.model.conditioning.at(self._calls)
        scale = self.guidance.cfg_scale
        if self._calls % 2 and noise < self.guidance.s_min_uncond:
            outputs = self.model.predict(x, time, positive)
            guided = _combined(outputs, outputs[:1], weights, 1.0)
        elif scale == 1 and weights == [1.0]:  # the negative prompt would have no effect
            guided = self.model.predict(x, time, positive)
        else:
            outputs, without = self._both(x, time, positive, negative)
            guided = _combined(outputs, without, weights, scale)
        self._calls += 1
        self._stopping = self._on_call(self._calls)
        return guided

    def _nearest(self, time: torch.Tensor) -> int:
        return int(time.round())

    def _both(
        self, x: torch.Tensor, time: torch.Tensor, positive: Embeds, negative: Embeds
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In one call if the prompts have the same length, as in A1111."""
        if positive.text.shape[1] == negative.text.shape[1]:
            outputs = self.model.predict(x, time, stacked([positive, negative]))
            return outputs[:-1], outputs[-1:]
        return self.model.predict(x, time, positive), self.model.predict(x, time, negative)

    def at_sigma(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The picture without noise, for the samplers from k-diffusion."""
        scale = 1 / (sigma**2 + 1) ** 0.5
        time = self.levels.times_of(sigma)
        output = self._guided(x * scale, time, sigma.item())
        if isinstance(self.levels, LcmLevels):  # A1111 reads any output as epsilon
            picture = _consistent(x, x - sigma * output, time)
        elif self.model.prediction == V:
            picture = x * scale**2 - sigma * scale * output
        else:
            picture = x - sigma * output
        self.picture = self.mask.blend(picture) if self.mask else picture
        return self.picture

    def at_time(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The noise in the picture, for A1111's other samplers."""
        given = self.mask.blend(x) if self.mask else x
        noise = self._guided(given, time, time.item())
        alpha = self.levels.alphas[int(time)]
        if self.model.prediction == V:
            noise = alpha.sqrt() * noise + (1 - alpha).sqrt() * given
        self.picture = (given - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return noise


def _combined(
    outputs: torch.Tensor, without: torch.Tensor, weights: list[float], scale: float
) -> torch.Tensor:
    """The output without the prompt, and from there towards each part of the prompt."""
    guided = without.clone()
    for output, weight in zip(outputs, weights, strict=True):
        guided += (output - without) * (weight * scale)
    return guided


def _consistent(x: torch.Tensor, picture: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The boundary condition of consistency models: at time 0, the picture itself."""
    scaled = time * 10.0
    whole = scaled**2 + SIGMA_DATA**2
    return scaled / whole**0.5 * picture + SIGMA_DATA**2 / whole * x
