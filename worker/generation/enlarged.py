"""Enlarging pictures: the size that A1111 is asked for, and the proof that it enlarged them. Pure.

A1111 v1.9.3 rounds the size of an enlarged picture down to multiples of 8. Where it is to have a
given size, A1111 fills what is missing with black. So the worker always asks for a factor, for a
given size one that covers it, and cuts the picture itself. If A1111 cannot load an upscaler's
model, it enlarges with Lanczos and answers 200 with the upscaler's name.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import pybase64
from PIL import Image, ImageChops, ImageStat, UnidentifiedImageError
from PIL.Image import Resampling

from worker.errors import EngineModelMissing, IncompleteAnswer, InvalidInput
from worker.generation.answers import an_object, text
from worker.generation.call import Call
from worker.generation.catalog import WITHOUT_MODEL
from worker.generation.picture import BAD_FILE
from worker.images.metadata import as_png
from worker.shown import shown_size

MAX_SIDE = 16_384  # pixels of a result's side
MAX_PIXELS = 2**26  # of a result
MAX_PIXELS_INSIDE = 2**28  # of what a model makes before it is reduced to the result
MAX_PASSES = 3  # of a model, one after the other

_STEP = 8  # A1111 makes sides that are multiples of it
_SAME = 3  # of 255; a model differs from Lanczos by more in some pixel of any picture with edges
_POSTPROCESSING = "postprocessing"  # A1111's name of the text in the PNG

Size = tuple[int, int]


@dataclass(frozen=True)
class Enlarged:
    """A picture that the engine has enlarged.

    Attributes:
        image: base64 PNG, as the engine answered.
        pixels: the same, decoded.
        info: A1111's sentence about it, without HTML.
    """

    image: str
    pixels: Image.Image
    info: str


def size_by(size: Size, factor: float) -> Size:
    """Width and height that A1111 makes of a picture."""
    width, height = (int((side * factor) // _STEP * _STEP) for side in size)
    return width, height


def covering(size: Size, target: Size) -> float:
    """The factor with which the enlarged picture has at least the target's width and height."""
    least = (math.ceil(side / _STEP) * _STEP for side in target)
    factor = max(to / side for side, to in zip(size, least, strict=True))
    while any(made < asked for made, asked in zip(size_by(size, factor), target, strict=True)):
        factor = math.nextafter(factor, math.inf)  # a division is rounded, sometimes down
    return factor


def check_size(field: str, size: Size, factor: float, scales: list[float]) -> None:
    """Check the size of the result before the engine is used.

    Args:
        field: the picture's field in the job.
        size: its width and height.
        factor: by how much it is enlarged.
        scales: by how much each upscaler's model enlarges in one pass.

    Raises:
        InvalidInput: the result would have no pixels, or too many.
    """
    made = size_by(size, factor)
    by = f"{field}: {shown_size(size)} pixels, enlarged by {factor:g}, become {shown_size(made)}"
    if min(made) < _STEP:
        raise InvalidInput(f"{by}: each side needs at least {_STEP}.", field=field)
    if max(made) > MAX_SIDE or made[0] * made[1] > MAX_PIXELS:
        raise InvalidInput(
            f"{by}; at most {MAX_SIDE} a side and {MAX_PIXELS / 1e6:.0f} million in all are made.",
            hint="Ask for a smaller size.",
            field=field,
        )
    inside = max((_inside(size, made, scale) for scale in scales), default=0)
    if inside > MAX_PIXELS_INSIDE:
        raise InvalidInput(
            f"{by}: the upscaler's model would make {inside / 1e6:.0f} million pixels of it, more"
            f" than {MAX_PIXELS_INSIDE / 1e6:.0f} million.",
            hint="Ask for a smaller size, or use 'Lanczos'.",
            field=field,
        )


def _inside(size: Size, made: Size, scale: float) -> float:
    """The pixels that the passes of an upscaler's model make."""
    by = scale
    for _ in range(MAX_PASSES - 1):
        if size[0] * by >= made[0] and size[1] * by >= made[1]:
            break
        by *= scale
    return size[0] * size[1] * by**2


# The answer ---------------------------------------------------------------------------------------


def read(answer: Any, size: Size) -> Enlarged:  # noqa: ANN401 - JSON
    """The picture in the answer of extra-single-image.

    Raises:
        IncompleteAnswer: it is no picture, or has another size.
        LookupError, TypeError: the answer has another shape.
    """
    fields = an_object(answer)
    image = text(fields, "image")
    info = text(fields, "html_info").removeprefix("<p>").removesuffix("</p>")
    try:
        opened = Image.open(io.BytesIO(pybase64.b64decode(image, validate=True)), formats=("PNG",))
        if opened.size != size:
            raise IncompleteAnswer(
                f"expected a picture of {shown_size(size)} pixels, but the engine returned one of"
                f" {shown_size(opened.size)}."
            )
        opened.load()
    except UnidentifiedImageError:
        raise IncompleteAnswer("the engine did not return a picture.") from None
    except BAD_FILE as error:
        raise IncompleteAnswer(f"the engine's picture cannot be read: {error}.") from error
    return Enlarged(image, opened, info)


def prove(source: Image.Image, enlarged: Image.Image, upscaler: str) -> None:
    """Check that the upscaler's model made the picture.

    Raises:
        EngineModelMissing: the picture is what A1111 makes without the model.
    """
    if upscaler in WITHOUT_MODEL or _is_flat(source):
        return
    plain = source if source.mode in {"RGB", "RGBA"} else source.convert("RGB")
    lanczos = plain.resize(enlarged.size, Resampling.LANCZOS).convert("RGB")
    difference = ImageChops.difference(lanczos, enlarged.convert("RGB"))
    if all(high <= _SAME for _, high in ImageStat.Stat(difference).extrema):
        raise EngineModelMissing(
            f"upscaler {upscaler!r} was not used: the engine could not load its model, and enlarged"
            " the picture with Lanczos.",
            hint="A1111 downloads the model at first use: let the worker's machine reach its host,"
            " or put the file into the engine's models folder (ESRGAN, RealESRGAN, ...).",
        )


def probe(upscaler: str) -> Call[None]:
    """A request that shows whether the engine has the upscaler's model: a small picture.

    A second pass reports its upscaler in any case, too, and its picture does not show which it was.
    """
    side = 64
    source = Image.frombytes("L", (side, side), bytes(n * n * 7 % 251 for n in range(side * side)))
    image = pybase64.b64encode_as_string(as_png(source, {}))

    def read_and_prove(answer: Any) -> None:  # noqa: ANN401 - JSON
        prove(source, read(answer, size_by(source.size, 2)).pixels, upscaler)

    body = {"upscaler_1": upscaler, "upscaling_resize": 2, "image": image}
    return Call("extra-single-image", body, read_and_prove, smaller="")


def _is_flat(image: Image.Image) -> bool:
    """Whether all pixels are equal: then every upscaler makes the same of it."""
    return all(low == high for low, high in ImageStat.Stat(image.convert("RGB")).extrema)


# Our own part -------------------------------------------------------------------------------------


def blended(first: Enlarged, second: Enlarged, visibility: float) -> Enlarged:
    """Both pictures in one, as A1111 does it for `upscaler_2`."""
    other = second.pixels.convert(first.pixels.mode)
    name = second.info.rpartition("Postprocess upscaler: ")[2]
    info = f"{first.info}, Postprocess upscaler 2: {name}"
    return _again(first, Image.blend(first.pixels, other, visibility), info)


def cropped(enlarged: Enlarged, target: Size) -> Enlarged:
    """The middle of the picture."""
    left, top = ((has - to) // 2 for has, to in zip(enlarged.pixels.size, target, strict=True))
    width, height = target
    pixels = enlarged.pixels.crop((left, top, left + width, top + height))
    return _again(enlarged, pixels, f"{enlarged.info}, Postprocess crop to: {width}x{height}")


def _again(before: Enlarged, pixels: Image.Image, info: str) -> Enlarged:
    """The pixels as a file with the texts of the one before."""
    given = before.pixels.info.items()
    texts = {str(name): value for name, value in given if isinstance(value, str)}
    texts[_POSTPROCESSING] = info
    file = as_png(pixels, texts)
    pixels.info = dict(texts.items())
    return Enlarged(pybase64.b64encode_as_string(file), pixels, info)
