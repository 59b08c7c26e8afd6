"""Resizing to a size of another ratio: A1111's resize modes."""

from collections.abc import Callable
from enum import IntEnum

from PIL import Image
from PIL.Image import Resampling

Size = tuple[int, int]
# (picture, size) -> the picture in this size
Enlarge = Callable[[Image.Image, Size], Image.Image]


class ResizeMode(IntEnum):
    """A1111's numbers. A picture with LATENT is not resized; its latent picture is."""

    STRETCH = 0
    CROP = 1
    FILL = 2
    LATENT = 3


class TooNarrow(ValueError):
    """The picture would have no pixels left in one direction."""


def lanczos(picture: Image.Image, size: Size) -> Image.Image:
    """The picture in this size."""
    return picture.resize(size, Resampling.LANCZOS)


def resized(
    picture: Image.Image, mode: ResizeMode, size: Size, enlarge: Enlarge = lanczos
) -> Image.Image:
    """The picture in this size; with CROP and FILL it is RGB and keeps its ratio.

    CROP cuts off what is too much, FILL repeats the pixels at the border. A mask ("L") is never
    given to `enlarge`. Raises TooNarrow.
    """
    scaled = lanczos if picture.mode == "L" else enlarge
    if mode == ResizeMode.STRETCH:
        return scaled(picture, size)
    inner = _with_own_ratio(picture.size, size, covers=mode == ResizeMode.CROP)
    found = scaled(picture, inner)
    whole = Image.new("RGB", size)
    whole.paste(found, (size[0] // 2 - inner[0] // 2, size[1] // 2 - inner[1] // 2))
    if mode != ResizeMode.CROP:
        _fill_borders(whole, found, size, inner)
    return whole


def _with_own_ratio(own: Size, size: Size, *, covers: bool) -> Size:
    """The size with the ratio of `own` that covers `size`, or fits into it."""
    wanted_ratio, own_ratio = size[0] / size[1], own[0] / own[1]
    uses_width = wanted_ratio > own_ratio if covers else wanted_ratio < own_ratio
    if uses_width:
        inner = (size[0], own[1] * size[0] // own[0])
    else:
        inner = (own[0] * size[1] // own[1], size[1])
    if min(inner) < 1:
        raise TooNarrow(
            f"a picture of {own[0]}x{own[1]} is too narrow to be resized to {size[0]}x{size[1]}"
        )
    return inner


def _fill_borders(whole: Image.Image, inner: Image.Image, size: Size, inner_size: Size) -> None:
    """Repeat the outermost pixels of `inner` on both sides of it, as Pillow enlarges an empty box.

    The box has no height (or no width), so that the result depends on the border's pixels only.
    """
    (width, height), (inner_width, inner_height) = size, inner_size
    if above := height // 2 - inner_height // 2:
        top = inner.resize((width, above), box=(0, 0, width, 0))
        bottom = inner.resize((width, above), box=(0, inner_height, width, inner_height))
        whole.paste(top, (0, 0))
        whole.paste(bottom, (0, above + inner_height))
    elif beside := width // 2 - inner_width // 2:
        left = inner.resize((beside, height), box=(0, 0, 0, height))
        right = inner.resize((beside, height), box=(inner_width, 0, inner_width, height))
        whole.paste(left, (0, 0))
        whole.paste(right, (beside + inner_width, 0))
