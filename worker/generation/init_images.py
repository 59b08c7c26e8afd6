"""The pictures of an img2img job: whether they and the mask fit together, and what is sent. Pure.

A1111 v1.9.3 does not compare their sizes, and draws without the mask if that is empty.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image, ImageFilter, ImageOps

from worker.errors import InvalidInput
from worker.images.input_image import InputImage
from worker.job.img2img import LATENT_RESIZE, Img2ImgRequest
from worker.shown import shown_size

Size = tuple[int, int]

# Without a size in the job the picture's own is used, up to the pixels that SDXL was trained with.
_MOST_PIXELS = 1024 * 1024
_LEAST_SIDE, _LARGEST_SIDE = 64, 4096
_CONTENTS = {0: "fill", 2: "latent noise", 3: "latent nothing"}  # of the masked part; 1: unreported
_ORIGINAL = 1
_WHITE = 255
_HALF = 128  # with mask_round A1111 takes grey below this as black, and alpha up to this
# After blurring and reducing, grey below this is below `_HALF` in A1111, too: its blur is OpenCV's.
_SURELY_BLACK = 96
_CROP = 1  # the resize_mode that cuts off what is outside of the drawn size
_LATENT_PIXEL = 8  # pixels of the picture that are one of the latent picture


@dataclass(frozen=True)
class InitImages:
    """The pictures of one job, checked.

    Attributes:
        images: in base64, as A1111 takes them.
        mask: the same; None without one.
        size: width and height of the first picture, in pixels.
    """

    images: tuple[str, ...]
    mask: str | None
    size: Size


def read(request: Img2ImgRequest, images: Mapping[str, InputImage]) -> InitImages:
    """Check the pictures against the request; `images` has them by their fields.

    Raises:
        InvalidInput: A1111 would answer 500, or would draw something else than the job asks for.
    """
    pictures = {field: image for field, image in images.items() if field != "mask"}
    mask, first = images.get("mask"), next(iter(pictures.values()))
    _check_sizes(request, pictures)
    if mask:
        _check_mask(request, first, mask)
    return InitImages(
        tuple(image.base64() for image in pictures.values()),
        mask.base64() if mask else None,
        first.size,
    )


def _check_sizes(request: Img2ImgRequest, pictures: Mapping[str, InputImage]) -> None:
    first = next(iter(pictures.values()))
    for field, image in pictures.items():
        if request.resize_mode == LATENT_RESIZE and min(image.size) < _LATENT_PIXEL:
            raise InvalidInput(
                f"{field} has {shown_size(image.size)} pixels, too few for resize_mode 3.",
                hint=f"Send a picture of at least {_LATENT_PIXEL} pixels a side, or use another"
                " resize_mode.",
                field=field,
            )
        if image.size != first.size and (why := _needs_one_size(request)):
            raise InvalidInput(
                f"{field} has {shown_size(image.size)} pixels, but init_images.0 has"
                f" {shown_size(first.size)}: {why} needs pictures of one size.",
                hint="Send pictures of one size, or a job for each.",
                field=field,
            )


def _needs_one_size(request: Img2ImgRequest) -> str:
    """What makes the pictures of a job need one size; empty if nothing does."""
    if request.only_masked:
        return "inpaint_full_res"
    if request.resize_mode == LATENT_RESIZE:
        return "resize_mode 3"
    # The mask is cut or filled up as the first picture is.
    return f"a mask with resize_mode {request.resize_mode}" * bool(
        request.mask and request.resize_mode
    )


def _check_mask(request: Img2ImgRequest, picture: InputImage, mask: InputImage) -> None:
    fits_any = not request.only_masked and request.resize_mode == 0  # both are stretched
    if mask.size != picture.size and not fits_any:
        raise InvalidInput(
            f"mask has {shown_size(mask.size)} pixels, but init_images.0 has"
            f" {shown_size(picture.size)}.",
            hint="Send a mask of the picture's size; with inpaint_full_res false and resize_mode 0"
            " A1111 stretches both.",
            field="mask",
        )
    drawn = drawn_size(request, picture.size)
    is_latent = request.resize_mode == LATENT_RESIZE and not request.only_masked
    if is_latent and request.inpainting_fill != _ORIGINAL and drawn != picture.size:
        raise InvalidInput(
            f"init_images.0 has {shown_size(picture.size)} pixels, but is drawn at"
            f" {shown_size(drawn)}:"
            " with a mask and resize_mode 3 A1111 can only begin with the picture itself.",
            hint="Send inpainting_fill 1, a picture of the size that is drawn, or another"
            " resize_mode.",
            field="inpainting_fill",
        )
    grey, is_alpha = _grey(mask)
    if not _marks(request, grey, is_alpha=is_alpha):
        raise InvalidInput(
            "mask marks nothing, so nothing would be drawn.",
            hint="White marks what is drawn anew, black what stays; inpainting_mask_invert 1 swaps"
            " them. Of a mask with transparency the opaque part is drawn anew.",
            field="mask",
        )
    if not _reaches_latent(request, grey, is_alpha=is_alpha):
        raise InvalidInput(
            f"mask marks too little: with a blur of {_blur(request)} pixels nothing of it is left"
            " in the latent picture, so nothing would be drawn.",
            hint="Mark a larger part, or lower mask_blur. Parts of fewer than 8 pixels a side are"
            " lost in any case, unless inpaint_full_res enlarges them.",
            field="mask",
        )


def _blur(request: Img2ImgRequest) -> str:
    across, down = request.blur
    return str(across) if across == down else f"{across} x {down}"


def _marks(request: Img2ImgRequest, grey: Image.Image, *, is_alpha: bool) -> bool:
    """Whether the mask marks any pixel."""
    low, high = cast("tuple[int, int]", grey.getextrema())
    if not request.mask_round:
        return low < _WHITE if request.inpainting_mask_invert else high > 0
    least = _HALF + 1 if is_alpha else _HALF
    return low < least if request.inpainting_mask_invert else high >= least


def _grey(mask: InputImage) -> tuple[Image.Image, bool]:
    """The mask as A1111 reads it, its alpha or else its grey; and whether it is the alpha."""
    with Image.open(io.BytesIO(mask.data), formats=("PNG", "JPEG", "WEBP")) as image:
        band = image.getchannel("A") if image.mode == "RGBA" else None
        if band and band.getextrema() != (_WHITE, _WHITE):
            return band, True
        return image.convert("L"), False


def _reaches_latent(request: Img2ImgRequest, grey: Image.Image, *, is_alpha: bool) -> bool:
    """Whether anything of the mask can be left in the latent picture.

    A1111 blurs the mask, reduces it to the size of the latent picture and then rounds it to 0 and
    1. Small parts and thin lines become 0.
    """
    if not request.mask_round:
        return True
    if is_alpha:
        grey = grey.point(lambda level: _WHITE * (level > _HALF))
    if request.inpainting_mask_invert:
        grey = ImageOps.invert(grey)
    left = grey.filter(ImageFilter.GaussianBlur(request.blur))
    width, height = (side // _LATENT_PIXEL for side in drawn_size(request, grey.size))
    if request.only_masked:  # the part that A1111 cuts out is this one or larger
        left = left.resize((width, height), box=left.getbbox())
    elif request.resize_mode == _CROP:
        left = ImageOps.fit(left, (width, height))
    elif request.resize_mode == 0:
        left = left.resize((width, height))
    return cast("tuple[int, int]", left.getextrema())[1] >= _SURELY_BLACK


# What is sent, and what the answer must prove --------------------------------------------------


def body(request: Img2ImgRequest, brought: InitImages) -> dict[str, Any]:
    """The fields of the request to the engine that depend on the pictures."""
    width, height = drawn_size(request, brought.size)
    fields: dict[str, Any] = {"init_images": list(brought.images), "width": width, "height": height}
    if brought.mask:
        fields["mask"] = brought.mask
    if len(brought.images) > 1:
        fields["batch_size"] = len(brought.images)
    return fields


def drawn_size(request: Img2ImgRequest, picture: Size) -> Size:
    """Width and height at which A1111 draws, multiples of 8.

    A side that the job leaves out follows from the picture: both are its own, or a smaller size of
    the same shape if it is large; one fits the other.
    """
    given = request.model_fields_set & {"width", "height"}
    width, height = request.width // 8 * 8, request.height // 8 * 8
    own_width, own_height = picture
    if given == {"width"}:
        return width, _side(width * own_height / own_width)
    if given == {"height"}:
        return _side(height * own_width / own_height), height
    if given:
        return width, height
    smaller = min(1.0, (_MOST_PIXELS / (own_width * own_height)) ** 0.5)
    scale = max(smaller, _LEAST_SIDE / min(picture))
    return _side(own_width * scale), _side(own_height * scale)


def _side(length: float) -> int:
    return min(max(round(length / 8) * 8, _LEAST_SIDE), _LARGEST_SIDE)


def result_size(request: Img2ImgRequest, brought: InitImages) -> Size:
    """Width and height of the result."""
    return brought.size if request.only_masked else drawn_size(request, brought.size)


def reported(request: Img2ImgRequest) -> dict[str, object]:
    """What A1111 must report in `extra_generation_params` if it draws what is asked for."""
    facts: dict[str, object] = {"Denoising strength": request.denoising_strength}
    if request.initial_noise_multiplier not in {None, 1}:
        facts["Noise multiplier"] = request.initial_noise_multiplier
    if extra := request.override_settings and request.override_settings.img2img_extra_noise:
        facts["Extra noise"] = extra
    if not request.mask:
        return facts
    across, down = request.blur
    if across == down > 0:
        facts["Mask blur"] = across
    if request.inpainting_mask_invert:
        facts["Mask mode"] = "Inpaint not masked"
    if request.inpainting_fill in _CONTENTS:
        facts["Masked content"] = _CONTENTS[request.inpainting_fill]
    if request.inpaint_full_res:
        padding = request.inpaint_full_res_padding
        facts |= {"Inpaint area": "Only masked", "Masked area padding": padding}
    return facts


def warnings(request: Img2ImgRequest, brought: InitImages) -> list[str]:
    """What differs from A1111, whose default size is 512 x 512 whatever the picture is."""
    if {"width", "height"} <= request.model_fields_set:
        return []
    drawn, own = shown_size(drawn_size(request, brought.size)), shown_size(brought.size)
    return (
        [] if drawn == own else [f"the job names no size: a picture of {own} is drawn at {drawn}."]
    )
