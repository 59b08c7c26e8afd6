"""The input of an img2img job: what A1111's img2img takes beside the fields of every job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from worker.job.image_fields import ImageText
from worker.job.model_fields import ABOUT_TASK, Float, Int, Switch
from worker.job.request import Json, OverrideSettings, PictureRequest, Unit, only

DEFAULT_BLUR = 4  # pixels, A1111's
LATENT_RESIZE = 3  # the resize_mode that enlarges the latent picture


def _bool_as_number(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


Blur = Annotated[Int, Field(ge=0, le=64)]


class Img2ImgOptions(OverrideSettings):
    """A1111 options for one img2img job."""

    img2img_fix_steps: StrictBool | None = Field(
        None, description="Draw all `steps`, whatever denoising_strength says."
    )
    img2img_color_correction: StrictBool | None = Field(
        None, description="Give the result the colours of the picture that the job brings."
    )
    img2img_extra_noise: Unit | None = None
    inpainting_mask_weight: Unit | None = Field(
        None, description="For inpainting checkpoints: how much the mask hides of the picture."
    )


class Img2ImgRequest(PictureRequest):
    """The input of an img2img job."""

    task: Literal["img2img"] = Field(description=ABOUT_TASK)
    init_images: list[ImageText] = Field(
        min_length=1,
        max_length=16,
        description="The picture to begin with. Several are drawn together, each to one result of"
        " a batch; `batch_size` then is their number.",
    )
    mask: ImageText | None = Field(
        None,
        description="What is drawn anew: the white part, or the opaque part of a mask with"
        " transparency.",
    )
    resize_mode: Int = Field(
        0,
        ge=0,
        le=3,
        description="How a picture of another shape becomes `width` x `height`: 0 stretches it, 1"
        " crops it, 2 fills up its sides, 3 stretches its latent picture.",
    )
    denoising_strength: Unit = Field(
        0.75, description="How much of the picture is drawn anew: 0 nothing, 1 everything."
    )
    mask_blur: Blur | None = Field(
        None, description="Pixels by which the mask's edge is blurred; A1111's default is 4."
    )
    mask_blur_x: Blur = Field(DEFAULT_BLUR, description="The same, only across.")
    mask_blur_y: Blur = Field(DEFAULT_BLUR, description="The same, only down.")
    mask_round: Switch = Field(
        True, description="Take the grey of a mask as white or black, whichever is nearer."
    )
    inpainting_fill: Int = Field(
        0,
        ge=0,
        le=3,
        description="What the masked part begins with: 0 colours of its surroundings, 1 the"
        " picture itself, 2 latent noise, 3 nothing.",
    )
    inpaint_full_res: Switch = Field(
        True,
        description="Draw only the masked part, at `width` x `height`; the result then has the size"
        " of the picture.",
    )
    inpaint_full_res_padding: Int = Field(
        0, ge=0, le=256, description="Pixels of the surroundings that are shown to the model then."
    )
    inpainting_mask_invert: Annotated[Int, BeforeValidator(_bool_as_number)] = Field(
        0, ge=0, le=1, description="1: what the mask leaves out is drawn anew."
    )
    initial_noise_multiplier: Float | None = Field(
        None, ge=0, le=1.5, description="Factor of the noise that is added; A1111's default is 1."
    )
    latent_mask: Annotated[
        Json, only(None, "A1111 v1.9.3 cannot take it over the API; send `mask`")
    ] = None
    include_init_images: StrictBool = False
    override_settings: Img2ImgOptions | None = None

    @property
    def images(self) -> dict[str, str]:
        """The texts of the pictures that the job brings, by their fields."""
        images = {f"init_images.{n}": text for n, text in enumerate(self.init_images)}
        return images | ({"mask": self.mask} if self.mask else {})

    @property
    def pictures(self) -> int | None:
        """How many pictures are made: for several init_images one of each, `n_iter` times."""
        several = len(self.init_images) > 1
        batch = len(self.init_images) if several else self.batch_size
        return None if self.script_name else self.n_iter * batch

    @property
    def blur(self) -> tuple[int, int]:
        """The mask's blur in pixels, across and down."""
        if self.mask_blur is not None:
            return self.mask_blur, self.mask_blur
        return self.mask_blur_x, self.mask_blur_y

    @property
    def only_masked(self) -> bool:
        """Whether only the masked part is drawn, at its own size."""
        return self.mask is not None and self.inpaint_full_res

    @property
    def noisy_steps(self) -> int:
        """How many of `steps` the picture's noise is worth; A1111's samplers draw one more."""
        if self._draws_all_steps:
            return self.steps - 1
        return int(min(self.denoising_strength, 0.999) * self.steps)

    @property
    def _draws_all_steps(self) -> bool:
        settings = self.override_settings
        return bool(settings and settings.img2img_fix_steps)

    def _conflicts(self) -> list[tuple[bool, str]]:
        count, strength = len(self.init_images), self.denoising_strength
        steps = self.steps * (1 if self._draws_all_steps else strength)
        sides = {self.mask_blur_x, self.mask_blur_y} - {self.mask_blur, DEFAULT_BLUR}
        has_batch_size = "batch_size" in self.model_fields_set
        other_batch = f"init_images has {count} pictures, but batch_size is {self.batch_size}"
        too_weak = f"steps x denoising_strength = {self.steps} x {strength:g} is less than 1"
        return [
            (
                count > 1 and has_batch_size and self.batch_size != count,
                f"{other_batch}: leave out batch_size",
            ),
            # A1111 would return the picture almost as it is.
            (
                steps < 1 or not strength,
                f"{too_weak}, so nothing is drawn: raise one of them",
            ),
            (
                self.mask_blur is not None and bool(sides),
                "mask_blur and mask_blur_x or mask_blur_y differ: give mask_blur, or the other two",
            ),
            *super()._conflicts(),
        ]
