"""Decodes pictures from outside in a process of its own, `python -m worker.images.decoder`.

Decoders are written in C and unpack whatever a file claims. In this process a bomb meets the
limits of memory and time, and a crash costs one job. The process gets no secret: `sandbox` starts
it with an almost empty environment.

Standard input: a line of JSON with the limits; then for each picture a line with its size in
bytes, and its bytes. Standard output: for each picture a line of JSON, the fields of `InputImage`
or a `problem` with a `hint`; then `size` bytes.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, BinaryIO

from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL.Image import Transpose

from worker.errors import InvalidInput
from worker.images.input_image import InputImage
from worker.images.limits import ImageLimits
from worker.images.metadata import PARAMETERS, Texts, as_png, read_exif
from worker.images.signatures import what_it_is

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

# The plugins of other formats are not asked: one of them starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_HINT = "Send the whole file of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture."
_TOO_LARGE = "Make the picture smaller before you send it."

_TURNED: dict[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# What every engine reads. Not WebP: the libwebp in A1111 v1.9.3's Pillow can be taken over by a
# hostile file (CVE-2023-4863), so that A1111 gets only what was encoded here.
_AS_SENT = {"PNG", "JPEG"}
_MODES = {"L", "RGB", "RGBA"}
# With other facts in its file, A1111 v1.9.3 may fail: it expects that "comment" is bytes, and its
# reader of EXIF raises errors that it does not catch.
_HARMLESS = {
    *("adobe", "adobe_transform", "aspect", "background", "chromaticity", "default_image", "dpi"),
    *("duration", "gamma", "icc_profile", "interlace", "jfif", "jfif_density", "jfif_unit"),
    *("jfif_version", "loop", "progression", "progressive", "srgb", "timestamp", PARAMETERS),
}

# The size is checked below, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 2  # each has memory of its own, which is limited


def decode(data: bytes, limits: ImageLimits) -> InputImage:
    """Decode a picture and check that it is complete.

    Raises:
        InvalidInput: it is no picture, damaged, too large, or of a form that is not accepted.
    """
    try:
        with warnings.catch_warnings(), _opened(data) as image:
            warnings.simplefilter("ignore")
            check_size(image.width, image.height, limits)
            image.load()
            return _input_image(image, data, limits)
    except InvalidInput:
        raise
    except MemoryError:
        raise InvalidInput("decoding it takes too much memory.", hint=_TOO_LARGE) from None
    except Exception as error:  # noqa: BLE001 - for a bad file, Pillow raises anything
        raise InvalidInput(f"the picture is damaged ({_reason(error)}).", hint=_HINT) from None


def _opened(data: bytes) -> ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidInput(f"it is {what_it_is(data)}.", hint=_HINT) from None


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Check a picture's width and height.

    Raises:
        InvalidInput: one of them is too large.
    """
    if max(width, height) > limits.side:
        raise InvalidInput(
            f"the picture has {width} x {height} pixels; at most {limits.side} x {limits.side}"
            " are accepted.",
            hint=_TOO_LARGE,
        )


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return " ".join(ascii(text)[1:-1][:120].split())


def _input_image(image: ImageFile, data: bytes, limits: ImageLimits) -> InputImage:
    exif = read_exif(image)
    texts = Texts(image, exif, limits.text_bytes)
    method = _TURNED.get(exif.orientation)  # A1111's img2img turns a picture, too
    pixels = _in_8_bits(image if method is None else image.transpose(method))
    if pixels is image and _goes_as_sent(image, texts):
        file, format_ = data, str(image.format).lower()
    else:
        file, format_ = _as_png(pixels, texts.infotext), "png"
    size = (pixels.width, pixels.height)
    return InputImage(
        file, format_, *size, texts.infotext, texts.items, left_out=tuple(texts.left_out)
    )


def _goes_as_sent(image: ImageFile, texts: Texts) -> bool:
    return (
        image.format in _AS_SENT
        and image.mode in _MODES
        and not getattr(image, "is_animated", False)
        and image.info.keys() <= _HARMLESS
        and not texts.left_out
    )


def _in_8_bits(image: Image.Image) -> Image.Image:
    """As L, RGB or RGBA with 8 bits a channel."""
    if image.mode.startswith("I;16"):
        # As "I", because Pillow does not calculate with the mode of a big-endian TIFF, "I;16B".
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in {"I", "F"}:
        raise InvalidInput(
            "the picture has 32 bits a channel.", hint="Send it with 8 or 16 bits a channel."
        )
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in _MODES:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _as_png(image: Image.Image, infotext: str | None) -> bytes:
    image.info.clear()  # Pillow would write the profile, the transparency and EXIF again
    return as_png(image, {PARAMETERS: infotext} if infotext else {}, compress_level=1)


# The process ------------------------------------------------------------------------------------


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Answer the requests of `sandbox`, one picture after the other."""
    limits = ImageLimits(**json.loads(source.readline()))
    _limit_process(limits)
    pixels_left = limits.total_pixels
    while line := source.readline():
        data = source.read(int(line))
        facts: dict[str, object]
        try:
            image = decode(data, limits)
            pixels_left -= image.width * image.height
            check_total(pixels_left, limits)
        except InvalidInput as error:
            facts, body = {"problem": error.message, "hint": error.hint}, b""
        else:
            facts, body = asdict(replace(image, data=b"")), image.data
            facts["data"] = "as sent" if body is data else "encoded"
            body = b"" if body is data else body
        target.write(json.dumps({**facts, "size": len(body)}).encode() + b"\n" + body)
        target.flush()


def check_total(pixels_left: int, limits: ImageLimits) -> None:
    """Check what remains of `limits.total_pixels` after a picture.

    Raises:
        InvalidInput: nothing remains.
    """
    if pixels_left < 0:
        raise InvalidInput(
            "with this one, the pictures of the job have more than"
            f" {limits.total_pixels / 1e6:.0f} million pixels.",
            hint="Send fewer or smaller pictures.",
        )


def _limit_process(limits: ImageLimits) -> None:
    """Limit memory and time of this process; on systems that cannot, the parent's clock remains."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 - Windows has none

        seconds = int(limits.decode_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (limits.decode_memory, limits.decode_memory))


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
