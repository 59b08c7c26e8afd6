"""Masks of inpainting: white is made anew, black stays."""

from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage  # type: ignore[import-untyped]

from engine.images.resize import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom
Array = np.ndarray[Any, np.dtype[Any]]

HALF_OPAQUE = 128
KERNEL_UNITS = 256  # OpenCV blurs bytes with weights of 1/256
# (radius, how often it is laid over): each blur fills what the larger ones left transparent
FILLING = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def one_channel(mask: Image.Image, *, rounds: bool) -> Image.Image:
    """The mask as "L": the alpha channel if it has one that is not opaque, else the brightness.

    With `rounds`, the alpha channel becomes black and white.
    """
    if mask.mode != "RGBA" or mask.getchannel("A").getextrema() == (255, 255):
        return mask.convert("L")
    alpha = mask.getchannel("A")
    return alpha.point(lambda level: 255 * (level > HALF_OPAQUE)) if rounds else alpha


def blurred(mask: Image.Image, across: int, down: int) -> Image.Image:
    """A Gaussian blur with these standard deviations in pixels, bit for bit the one of OpenCV."""
    levels = np.asarray(mask)
    for sigma, axis in ((across, 1), (down, 0)):
        if sigma > 0:
            levels = _blur(levels, _kernel(sigma), axis)
    return Image.fromarray(levels)


def _kernel(sigma: int) -> Array:
    """Whole weights with the sum 256. The error of each is carried to the next one."""
    side = int(2.5 * sigma + 0.5)
    exact = np.exp(-0.5 * (np.arange(-side, 1) / sigma) ** 2)
    exact /= 2 * exact.sum() - exact[-1]
    weights, error = np.zeros(2 * side + 1, np.int64), 0.0
    for at, weight in enumerate(exact[:-1]):
        wanted = weight * KERNEL_UNITS + error
        weights[at] = weights[-1 - at] = round(wanted)
        error = wanted - weights[at]
    weights[side] = KERNEL_UNITS - weights.sum()
    return weights


def _blur(levels: Array, kernel: Array, axis: int) -> Array:
    if levels.shape[axis] == 1:  # nothing to mix
        return levels
    mixed = ndimage.correlate1d(levels.astype(np.int64), kernel, axis, mode="mirror")
    found: Array = ((mixed + KERNEL_UNITS // 2) // KERNEL_UNITS).astype(np.uint8)
    return found


def region(mask: Image.Image, padding: int, size: Size) -> Box | None:
    """The part of the picture around the mask, in the ratio of `size`; None for an empty mask."""
    box = mask.getbbox()
    if box is None:
        return None
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    if right <= left or bottom <= top:  # a negative padding
        raise ValueError(f"inpaint_full_res_padding of {padding} leaves nothing of the masked area")
    width, height, ratio = right - left, bottom - top, size[0] / size[1]
    if width / height > ratio:
        top, bottom = _grown(top, bottom, int(width / ratio - height), mask.height)
    else:
        left, right = _grown(left, right, int(height * ratio - width), mask.width)
    return left, top, right, bottom


def _grown(start: int, end: int, more: int, limit: int) -> tuple[int, int]:
    """The interval with `more` on both sides together, moved to be within 0 to `limit`."""
    start, end = start - more // 2, end + more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the masked part in blurred colors of its surroundings."""
    kept = Image.new("RGBa", picture.size)
    without_alpha = picture.convert("RGBA").convert("RGBa")
    kept.paste(without_alpha, mask=ImageOps.invert(mask.convert("L")))
    found = Image.new("RGBA", picture.size)
    for radius, times in FILLING:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            found.alpha_composite(layer)
    return found.convert("RGB")


def latent_levels(mask: Image.Image, size: Size, *, rounds: bool) -> Array:
    """(height, width) of the latent picture, 1 where it is made anew."""
    small = mask.convert("RGB").resize(size)
    levels = np.asarray(small, np.float32)[:, :, 0] / np.float32(255)
    return np.around(levels) if rounds else levels


def doubled(mask: Image.Image) -> Image.Image:
    """Twice as bright: what the blur of the mask reaches is mostly shown as it was drawn."""
    return Image.fromarray(np.minimum(np.asarray(mask, np.int16) * 2, 255).astype(np.uint8))
