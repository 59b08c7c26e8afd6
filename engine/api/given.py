"""The given pictures of img2img, for the model: what a picture begins with, and what is over it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from engine.api import options as option
from engine.api.img2img import Img2Img
from engine.images import initial, masks
from engine.images.initial import Initial
from engine.images.resize import Enlarge, ResizeMode, lanczos
from engine.models.loaded_model import LoadedModel, to_pixels
from engine.sampling.denoiser import Mask
from engine.sampling.noise import CHANNELS, FACTOR, Noise, Seeds

OTHER_SIZE = (
    "resize_mode 3 with an inpainting checkpoint needs a picture and a mask of the size that is "
    "drawn"
)


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of a request, and its mask."""

    init_images: list[Image.Image]
    mask: Image.Image | None


@dataclass(frozen=True)
class Beginning:
    """A latent picture to begin with, its mask, and the further inputs of an inpainting model."""

    latent: torch.Tensor
    mask: Mask | None = None
    extra: torch.Tensor | None = None


@dataclass
class Given:
    """The prepared pictures of a job, of which picture `n` begins with number `n % batch`."""

    request: Img2Img
    settings: Mapping[str, Any]
    prepared: Initial
    # pictures that the options `return_mask` and `return_mask_composite` ask for, by number
    beside: dict[int, list[Image.Image]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        request: Img2Img,
        settings: Mapping[str, Any],
        pictures: Pictures,
        enlarge: Enlarge = lanczos,
    ) -> "Given":
        """Fit the pictures and the mask to the size. Raises ValueError."""
        wanted = request.image_settings(settings)
        prepared = initial.prepare(pictures.init_images, pictures.mask, wanted, enlarge)
        return cls(request, settings, prepared)

    def begin(self, model: LoadedModel, number: int, seed: int, fill: Seeds) -> Beginning:
        """What picture `number` begins with; `fill` gives the noise for the masked part."""
        prepared = self.prepared
        pixels = to_pixels(prepared.pictures[number % len(prepared.pictures)])
        latent = model.encode(pixels, seed)
        if self.request.resize_mode == ResizeMode.LATENT:
            size = (self.request.height // FACTOR, self.request.width // FACTOR)
            latent = functional.interpolate(latent, size=size, mode="bilinear")
        mask = None
        if prepared.mask is not None:
            latent, mask = self._masked(latent, prepared.mask, fill)
        extra = self._extra(model, pixels, latent, seed)
        return Beginning(latent, mask, extra)

    def _masked(
        self, latent: torch.Tensor, picture: Image.Image, seeds: Seeds
    ) -> tuple[torch.Tensor, Mask]:
        """The latent picture as `inpainting_fill` asks for it, and the mask in its size."""
        height, width = latent.shape[2:]
        levels = masks.latent_levels(picture, (width, height), rounds=self.request.mask_round)
        made = torch.from_numpy(levels).to(latent)[None, None]
        fill = self.request.inpainting_fill
        if fill == initial.LATENT_NOISE:
            noise = Noise(seeds, (CHANNELS, height, width), latent.device).first()
            latent = latent * (1 - made) + noise * made
        elif fill == initial.LATENT_NOTHING:
            latent = latent * (1 - made)
        return latent, Mask(1 - made, latent)

    def _extra(
        self, model: LoadedModel, pixels: torch.Tensor, latent: torch.Tensor, seed: int
    ) -> torch.Tensor | None:
        if not model.is_inpainting:
            return None
        levels, picture = None, self.prepared.mask
        if picture is not None:
            levels = torch.from_numpy(initial.to_levels(picture.convert("L")))[None, None]
            levels = torch.round(levels) if self.request.mask_round else levels
        weight = self.settings[option.MASK_WEIGHT]
        extra = inpainting_inputs(model, pixels, levels, weight=weight, seed=seed)
        if extra.shape[2:] != latent.shape[2:]:
            raise ValueError(OTHER_SIZE)
        return extra

    def finish(self, number: int, drawn: Image.Image) -> Image.Image:
        """The drawn picture below the unmasked part of the given one."""
        overlays, shown = self.prepared.overlays, self.prepared.shown_mask
        bare = drawn
        if overlays:
            drawn, bare = overlays[number % len(overlays)].over(drawn)
        if shown is not None:
            self.beside[number] = self._masks(shown, bare, drawn)
        return drawn

    def _masks(
        self, shown: Image.Image, bare: Image.Image, finished: Image.Image
    ) -> list[Image.Image]:
        found = [shown.convert("RGB")] if self.settings[option.RETURN_MASK] else []
        if self.settings[option.RETURN_COMPOSITE]:
            found.append(initial.composite(bare, shown, finished.size))
        return found


def inpainting_inputs(
    model: LoadedModel,
    pixels: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    weight: float,
    seed: int,
) -> torch.Tensor:
    """The further inputs of an inpainting model (1, 5, height, width): mask and masked picture.

    `pixels` are (1, 3, ...) in -1..1, `mask` is (1, 1, ...), 1 where the picture is made anew, None
    for all of it. A `weight` below 1 lets the masked part of the picture shine through.
    """
    made = torch.ones_like(pixels[:, :1]) if mask is None else mask.to(pixels)
    if made.shape[2:] != pixels.shape[2:]:
        raise ValueError(OTHER_SIZE)
    masked = model.encode(torch.lerp(pixels, pixels * (1 - made), weight), seed)
    small = functional.interpolate(made, size=masked.shape[2:])
    return torch.cat([small.to(masked), masked], 1)
