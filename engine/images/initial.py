"""The pictures that img2img begins with, and what is laid over the pictures that it draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from engine.images import masks
from engine.images.decode import flattened
from engine.images.masks import Box
from engine.images.resize import Enlarge, ResizeMode, Size, lanczos, resized

FILL, ORIGINAL, LATENT_NOISE, LATENT_NOTHING = range(4)  # A1111's inpainting_fill
FILL_NAMES = {FILL: "fill", LATENT_NOISE: "latent noise", LATENT_NOTHING: "latent nothing"}


@dataclass(frozen=True)
class Inpainting:
    """How a mask is used: A1111's fields, without `inpaint_` and `inpainting_`."""

    blur: tuple[int, int] = (4, 4)  # across and down, in pixels
    rounds: bool = True
    fill: int = FILL
    only_masked: bool = True  # inpaint_full_res
    padding: int = 0
    inverts: bool = False


@dataclass(frozen=True)
class ImageSettings:
    """The size of the drawn pictures, and how the given ones and their mask are fitted to it."""

    size: Size
    mode: ResizeMode = ResizeMode.STRETCH
    background: str = "#ffffff"
    inpainting: Inpainting = field(default_factory=Inpainting)
    overlays: bool = True  # the unmasked part of the given picture is pasted over the drawn one


@dataclass(frozen=True)
class Overlay:
    """The unmasked part of a given picture (RGBA), and the part of it that is drawn."""

    picture: Image.Image
    region: Box | None

    def over(self, drawn: Image.Image) -> tuple[Image.Image, Image.Image]:
        """The finished picture (RGB), and the drawn one in its place, with nothing over it."""
        if self.region is not None:
            left, top, right, bottom = self.region
            whole = Image.new("RGBA", self.picture.size)
            whole.paste(resized(drawn, ResizeMode.CROP, (right - left, bottom - top)), (left, top))
            drawn = whole
        # where the sizes differ (a side that is no multiple of 8), both begin at the top left
        finished = drawn.convert("RGBA")
        finished.alpha_composite(self.picture)
        return finished.convert("RGB"), drawn


@dataclass
class Initial:
    """The prepared pictures of a job.

    `mask` is in the size of the pictures, for the model; `shown_mask` in the size of the finished
    pictures. `entries` are for the generation parameters, in A1111's order.
    """

    pictures: list[Image.Image]
    overlays: list[Overlay]
    mask: Image.Image | None
    shown_mask: Image.Image | None
    entries: dict[str, Any]


def prepare(
    pictures: Sequence[Image.Image],
    mask: Image.Image | None,
    settings: ImageSettings,
    enlarge: Enlarge = lanczos,
) -> Initial:
    """Fit the pictures and their mask to the size. An empty mask counts as none.

    Raises ValueError for sizes that cannot be resized to each other.
    """
    preparing = _Preparing(settings, enlarge)
    if mask is not None:
        preparing.read_mask(mask)
    found = [preparing.picture(one) for one in pictures]
    if preparing.mask is not None and settings.inpainting.fill in FILL_NAMES:
        preparing.entries["Masked content"] = FILL_NAMES[settings.inpainting.fill]
    shown = preparing.shown_mask
    return Initial(found, preparing.overlays, preparing.mask, shown, preparing.entries)


class _Preparing:
    """The mask, as far as it is read; it belongs to all pictures."""

    def __init__(self, settings: ImageSettings, enlarge: Enlarge) -> None:
        self.settings, self.enlarge = settings, enlarge
        self.mask: Image.Image | None = None
        self.shown_mask: Image.Image | None = None
        self.region: Box | None = None
        self.overlays: list[Overlay] = []
        self.entries: dict[str, Any] = {}

    def read_mask(self, given: Image.Image) -> None:
        """Invert, blur, and cut or resize the mask."""
        wanted, entries = self.settings.inpainting, self.entries
        mask = masks.one_channel(given, rounds=wanted.rounds)
        if wanted.inverts:
            mask = ImageOps.invert(mask)
            entries["Mask mode"] = "Inpaint not masked"
        mask = masks.blurred(mask, *wanted.blur)
        if max(wanted.blur) > 0:
            across, down = wanted.blur
            entries["Mask blur"] = across if across == down else None
        if wanted.only_masked:
            self._cut(mask)
        else:
            self.mask = resized(mask, self.settings.mode, self.settings.size)
            self.shown_mask = masks.doubled(self.mask)

    def _cut(self, mask: Image.Image) -> None:
        """The part around the mask; nothing is masked if it is empty, as in A1111."""
        padding = self.settings.inpainting.padding
        self.region = masks.region(mask, padding, self.settings.size)
        if self.region is None:
            return
        self.shown_mask = mask
        self.mask = resized(mask.crop(self.region), ResizeMode.FILL, self.settings.size)
        self.entries["Inpaint area"] = "Only masked"
        self.entries["Masked area padding"] = padding

    def picture(self, given: Image.Image) -> Image.Image:
        """The picture that the model is given; the overlay of it is kept."""
        settings = self.settings
        picture = flattened(given, settings.background)
        if self.region is None and settings.mode != ResizeMode.LATENT:
            picture = resized(picture, settings.mode, settings.size, self.enlarge)
        if self.mask is not None:
            self._keep_overlay(picture)
        if self.region is not None:
            picture = picture.crop(self.region)
            picture = resized(picture, ResizeMode.FILL, settings.size, self.enlarge)
        if self.mask is not None and settings.inpainting.fill != ORIGINAL:
            picture = masks.filled(picture, self._of_size(self.mask, picture))
        return picture

    def _keep_overlay(self, picture: Image.Image) -> None:
        if self.shown_mask is None or not self.settings.overlays:
            return
        if self.shown_mask.size != picture.size:
            self.shown_mask = resized(self.shown_mask, self.settings.mode, picture.size)
        kept = Image.new("RGBa", picture.size)
        below = ImageOps.invert(self.shown_mask.convert("L"))
        kept.paste(picture.convert("RGBA").convert("RGBa"), mask=below)
        self.overlays.append(Overlay(kept.convert("RGBA"), self.region))

    @staticmethod
    def _of_size(mask: Image.Image, picture: Image.Image) -> Image.Image:
        if mask.size != picture.size:
            raise ValueError(
                f"the mask has {mask.width}x{mask.height} pixels and the picture "
                f"{picture.width}x{picture.height}: resize_mode 3 needs a picture of the size "
                "that is drawn, or inpainting_fill 1"
            )
        return mask


def to_levels(picture: Image.Image) -> np.ndarray[Any, np.dtype[Any]]:
    """(height, width, channels) in 0..1, single precision."""
    return np.asarray(picture, np.float32) / np.float32(255)


def composite(drawn: Image.Image, mask: Image.Image, finished: Size) -> Image.Image:
    """The drawn picture where the mask is white, transparent elsewhere: `return_mask_composite`."""
    within = resized(mask, ResizeMode.FILL, finished).convert("L")
    opaque = drawn.convert("RGBA").convert("RGBa")
    return Image.composite(opaque, Image.new("RGBa", finished), within).convert("RGBA")
