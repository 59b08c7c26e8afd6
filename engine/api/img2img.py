"""An img2img request: its fields, its pictures, and what they mean for the drawing."""

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image

from engine.api import options as option
from engine.api.request import Generation, Integer
from engine.errors import Refused, Unsupported, shown
from engine.images import decode
from engine.images.initial import LATENT_NOTHING, ImageSettings, Inpainting
from engine.images.resize import ResizeMode

MOST_BLUR = 256  # pixels; A1111's page offers up to 64
MOST_PIXELS = 4 * decode.LONGEST_SIDE**2  # of all pictures together


class InitImageNotFound(Refused):
    """There is nothing to begin with; A1111's status and words."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Init image not found")


class Img2Img(Generation):
    """A1111's StableDiffusionProcessingImg2Img.

    `image_cfg_scale` has no effect: A1111 reads it only for instruct-pix2pix checkpoints, which the
    engine refuses.
    """

    accepted: ClassVar[frozenset[str]] = Generation.accepted | {
        *("init_images", "resize_mode", "image_cfg_scale", "mask", "mask_blur_x", "mask_blur_y"),
        *("mask_blur", "mask_round", "inpainting_fill", "inpaint_full_res"),
        *("inpaint_full_res_padding", "inpainting_mask_invert", "initial_noise_multiplier"),
        *("include_init_images", "firstpass_image", "latent_mask"),
    }

    denoising_strength: float | None = 0.75
    init_images: list[str] | None = None
    resize_mode: Integer = 0
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur_x: Integer = 4
    mask_blur_y: Integer = 4
    mask_blur: Integer | None = None
    mask_round: bool = True
    inpainting_fill: Integer = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Integer = 0
    inpainting_mask_invert: Integer = 0
    initial_noise_multiplier: float | None = None
    latent_mask: str | None = None
    include_init_images: bool = False

    def echo(self) -> dict[str, Any]:
        """Without the pictures, unless `include_init_images` asks for them."""
        fields = super().echo()
        return fields if self.include_init_images else fields | {"init_images": None, "mask": None}

    def _check_task(self) -> None:
        if not self.init_images:
            raise InitImageNotFound
        if self.latent_mask is not None:  # A1111's API fails with any text here
            raise Unsupported(
                "latent_mask; leave it out, because `mask` is also used for the latent"
            )
        if len(self.init_images) > max(self.batch_size, 1):
            raise RuntimeError(
                f"bad number of images passed: {len(self.init_images)}; expecting "
                f"{self.batch_size} or less"
            )
        self._check_denoising()
        for name, most in (("resize_mode", max(ResizeMode)), ("inpainting_fill", LATENT_NOTHING)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 0 to {most}, not {shown(getattr(self, name))}")
        if max(self.blur) > MOST_BLUR:
            raise ValueError(f"mask_blur must be at most {MOST_BLUR}, not {shown(max(self.blur))}")
        multiplier = self.initial_noise_multiplier
        if multiplier is not None and not 0 <= multiplier <= option.MOST_NOISE:
            raise ValueError(
                f"initial_noise_multiplier must be 0 to {option.MOST_NOISE}, not "
                f"{shown(multiplier)}"
            )

    @property
    def blur(self) -> tuple[int, int]:
        """Of the mask, across and down, in pixels; `mask_blur` is for both."""
        if self.mask_blur is None:
            return self.mask_blur_x, self.mask_blur_y
        return self.mask_blur, self.mask_blur

    def pictures(self) -> tuple[list[Image.Image], Image.Image | None]:
        """The decoded pictures and the mask. Raises InvalidImage, Unsupported for a URL."""
        found: list[Image.Image] = []
        pixels = 0
        for encoded in self.init_images or ():
            found.append(decode.read(encoded))
            pixels += found[-1].width * found[-1].height
            if pixels > MOST_PIXELS:
                raise ValueError(f"the init_images have more than {MOST_PIXELS} pixels together")
        return found, decode.read(self.mask) if self.mask else None

    def image_settings(self, settings: Mapping[str, Any]) -> ImageSettings:
        """How the pictures are fitted, with the options that apply."""
        inpainting = Inpainting(
            self.blur,
            self.mask_round,
            self.inpainting_fill,
            self.inpaint_full_res,
            self.inpaint_full_res_padding,
            bool(self.inpainting_mask_invert),
        )
        return ImageSettings(
            (self.width, self.height),
            ResizeMode(self.resize_mode),
            settings[option.BACKGROUND],
            inpainting,
            settings[option.OVERLAY],
        )

    def noise_multiplier(self, settings: Mapping[str, Any]) -> float:
        """The field, otherwise the option."""
        asked = self.initial_noise_multiplier
        return float(settings[option.NOISE_MULTIPLIER] if asked is None else asked)
