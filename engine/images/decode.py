"""Pictures that a request brings as text: base64, or a data URI."""

import base64
import binascii
import io
import logging
from typing import Any

from PIL import Image, ImageOps

from engine.errors import InvalidImage, Unsupported

log = logging.getLogger(__name__)

LONGEST_SIDE = 8192
# Pillow knows more formats; some of them start other programs, or have no bound of memory
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Image.MAX_IMAGE_PIXELS = None  # the size is checked below, before anything is decoded
_URLS = ("http://", "https://")
# raised by Pillow for files that are damaged, or would need too much memory
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError),
    MemoryError,
)


def read(encoded: str) -> Image.Image:
    """The picture, decoded and turned as its EXIF orientation says; its `info` is kept.

    Of an animation it is the first picture. The size is checked before the pixels are decoded.
    Raises InvalidImage, and Unsupported for a URL.
    """
    if encoded[:8].lower().startswith(_URLS):
        raise Unsupported("pictures from URLs; send the picture itself as base64")
    return open_picture(_bytes(encoded))


def _bytes(encoded: str) -> bytes:
    if encoded.startswith("data:"):
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidImage("the data URI has no ';base64,' before its data")
    try:
        # strict: A1111 drops other characters, and shows the rest as a black picture
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage(f"it is not base64 ({error})") from error


def open_picture(content: bytes) -> Image.Image:
    """As `read`, from the bytes of the file."""
    if not content:
        raise InvalidImage("it is empty")
    try:
        picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except DAMAGED as error:
        raise InvalidImage(f"it is not one of {', '.join(FORMATS)}") from error
    check_size(picture.size)
    try:
        picture.load()
    except DAMAGED as error:
        raise InvalidImage(f"its pixels cannot be decoded ({str(error)[:100]})") from error
    return opaque_or_rgba(_upright(picture))


def check_size(size: tuple[int, int]) -> None:
    """Raise InvalidImage if a side is too long."""
    if max(size) > LONGEST_SIDE:
        raise InvalidImage(
            f"it has {size[0]}x{size[1]} pixels; each side may have at most {LONGEST_SIDE}"
        )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except DAMAGED as error:  # damaged EXIF: A1111 uses the picture as it is, too
        log.warning("left a picture as it is: its EXIF cannot be read (%s)", error)
        return picture


def opaque_or_rgba(picture: Image.Image) -> Image.Image:
    """A picture whose palette has transparent colors as RGBA; any other one as it is."""
    has_table: Any = picture.info.get("transparency")
    if picture.mode in ("RGB", "P") and isinstance(has_table, bytes):
        return picture.convert("RGBA")
    return picture


def flattened(picture: Image.Image, background: str) -> Image.Image:
    """RGB, with the transparent parts of RGBA in the color `background` ("#ffffff")."""
    if picture.mode == "RGBA":
        behind = Image.new("RGBA", picture.size, background)
        behind.paste(picture, mask=picture)
        picture = behind
    return picture.convert("RGB")
