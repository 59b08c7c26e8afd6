"""A picture as a file: PNG as the engine made it, or JPEG or WebP with the same infotext in it.

A1111's infotext (prompt, seed, sampler, ...) stands in a PNG's text chunk `parameters`, and in the
EXIF field UserComment of the others, as A1111 v1.9.3 writes it itself (`save_image_with_geninfo`):
its "PNG Info" tab reads all three back.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
from dataclasses import dataclass

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from worker.errors import DeliveryFailed
from worker.job.output_fields import DEFAULT_QUALITY, ImageFormat

PARAMETERS = "parameters"
_UNICODE = b"UNICODE\0"  # EXIF's mark of the encoding; A1111 then writes UTF-16, high byte first
_LARGEST_EXIF = 65_533  # bytes of a JPEG's segment; WebP has no limit
_PNG = b"\x89PNG\r\n\x1a\n"
_LONG, _UNDEFINED = 4, 7  # TIFF's types
_NO_MORE = bytes(4)  # ends a chain of TIFF's directories
_EXIF_AT = 26  # from the TIFF header's start: 8 bytes for it, 18 for the main directory
_COMMENT_AT = 44
_NO_PICTURE = 'Ask for another `output.format`; "png" gives what the engine made.'

# The pictures are the engine's own and can be as large as a job may ask for: no bombs.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Picture:
    """A picture's file.

    Attributes:
        data: its bytes.
        format: png, jpeg or webp.
        quality: 1 to 100; None for png.
        complete: whether the infotext is in it; a JPEG's EXIF holds 32,000 characters.
    """

    data: bytes
    format: ImageFormat
    quality: int | None = None
    complete: bool = True

    @property
    def content_type(self) -> str:
        """Its MIME type, which a presigned URL can be bound to."""
        return f"image/{self.format}"

    @property
    def suffix(self) -> str:
        """How its file's name ends."""
        return "jpg" if self.format == "jpeg" else self.format

    def base64(self) -> str:
        """As A1111's API gives pictures."""
        return base64.b64encode(self.data).decode()


def from_engine(image: str, format_: ImageFormat = "png", quality: int | None = None) -> Picture:
    """The engine's base64 picture in another form; a PNG that shall be one stays as it is.

    Raises:
        DeliveryFailed: it is no picture, or too large for the form.
    """
    try:
        data = base64.b64decode(image, validate=True)
    except binascii.Error:
        raise DeliveryFailed("the engine's picture is not base64.", hint=_NO_PICTURE) from None
    if format_ == "png" and data.startswith(_PNG):
        return Picture(data, "png")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _encoded(opened, format_, quality)
    except UnidentifiedImageError:  # its text is the address of a buffer
        raise DeliveryFailed("the engine's picture is none.", hint=_NO_PICTURE) from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's three for a bad file
        raise DeliveryFailed(
            f"the picture cannot be made {format_}: {error}.", hint=_NO_PICTURE
        ) from error


def thumbnail(image: str, longest: int = 256) -> str | None:
    """A base64 picture as a base64 JPEG with sides of at most `longest`; None if it is none."""
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
            small = opened.convert("RGB")
        small.thumbnail((longest, longest))
        small.save(file, "JPEG", quality=70)
    except (OSError, ValueError, SyntaxError):  # Pillow's three for a bad file
        return None
    return base64.b64encode(file.getvalue()).decode()


def infotext(image: Image.Image) -> str | None:
    """What A1111 wrote into a picture; None if nothing."""
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return comment.removeprefix(_UNICODE).decode("utf-16-be", "replace")
    text = image.info.get(PARAMETERS)
    return str(text) if text else None


def _encoded(image: Image.Image, format_: ImageFormat, quality: int | None) -> Picture:
    text = infotext(image)
    file = io.BytesIO()
    if format_ == "png":
        chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text(PARAMETERS, text)
        image.save(file, "PNG", pnginfo=chunks)
        return Picture(file.getvalue(), "png")
    quality = DEFAULT_QUALITY if quality is None else quality
    exif = _exif(text)
    fits = format_ != "jpeg" or len(exif) <= _LARGEST_EXIF
    colours = image if image.mode == "RGB" else image.convert("RGB")
    colours.save(file, format_.upper(), quality=quality, exif=exif if fits else b"")
    return Picture(file.getvalue(), format_, quality, complete=fits)


def _exif(text: str | None) -> bytes:
    """An EXIF block with nothing but a UserComment.

    By hand, because Pillow gives that the type BYTE, and then piexif, with which A1111 reads,
    fails.
    """
    if text is None:
        return b""
    comment = _UNICODE + text.encode("utf-16-be", "replace")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    # Two directories of one entry each: tag, type, count, value.
    main = struct.pack(">HHHII", 1, ExifTags.IFD.Exif, _LONG, 1, _EXIF_AT) + _NO_MORE
    entry = (ExifTags.Base.UserComment, _UNDEFINED, len(comment), _COMMENT_AT)
    exif = struct.pack(">HHHII", 1, *entry) + _NO_MORE
    return b"Exif\0\0" + header + main + exif + comment
