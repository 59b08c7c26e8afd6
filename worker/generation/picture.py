"""A picture as a file: PNG as the engine made it, or JPEG or WebP with the same infotext.

A1111's infotext (prompt, seed, sampler, ...) is in the text chunk `parameters` of a PNG, and in the
EXIF field UserComment of the others, as A1111 v1.9.3 writes it (`save_image_with_geninfo`). A1111's
"PNG Info" tab reads all three.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import pybase64
from PIL import ExifTags, Image, UnidentifiedImageError

from worker.errors import DeliveryFailed
from worker.images.base64_text import decoded_size
from worker.images.metadata import PARAMETERS, as_png, infotext_of
from worker.job.output_fields import DEFAULT_QUALITY, ImageFormat

_UNICODE = b"UNICODE\0"  # EXIF's name of the encoding; A1111 then writes big-endian UTF-16
_LARGEST_EXIF = 65_533  # bytes in a segment of a JPEG; WebP has no limit
_PNG = b"\x89PNG\r\n\x1a\n"
_EMPTY_CHUNK = 12  # bytes: its length, its kind and its checksum
_SIZE_AT, _HEADER_BYTES, _HEADER_TEXT = 16, 24, 32  # in a PNG; the text is 24 bytes in base64
_LONG, _UNDEFINED = 4, 7  # numbers of TIFF's types
_NO_MORE = bytes(4)  # ends a chain of TIFF directories
_EXIF_AT = 26  # bytes from the start of the TIFF header: 8 for it and 18 for the main directory
_COMMENT_AT = 44
_HINT = 'Use another `output.format`: "png" returns the picture as the engine made it.'

# What Pillow raises for a bad file, or for one that claims to be enormous.
BAD_FILE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)

# No limit against decompression bombs: the engine is trusted, and a job's size is limited.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Picture:
    """A picture's file.

    Attributes:
        content: its bytes, or the same as base64, which is decoded only if it must be.
        format: png, jpeg or webp.
        quality: 1 to 100; None for png.
        complete: whether it has the infotext; the EXIF of a JPEG has room for 32,000 characters.
    """

    content: bytes | str
    format: ImageFormat
    quality: int | None = None
    complete: bool = True

    @property
    def content_type(self) -> str:
        """Its MIME type; a presigned URL may require it."""
        return f"image/{self.format}"

    @property
    def suffix(self) -> str:
        """The extension of its file name."""
        return "jpg" if self.format == "jpeg" else self.format

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return pybase64.b64decode(self.content) if isinstance(self.content, str) else self.content

    @property
    def size(self) -> int:
        """Its number of bytes."""
        if isinstance(self.content, str):
            return decoded_size(self.content)
        return len(self.content)

    def base64(self) -> str:
        """In base64, as in the answers of A1111's API."""
        if isinstance(self.content, str):
            return self.content
        return pybase64.b64encode_as_string(self.content)


def from_engine(image: str, format_: ImageFormat = "png", quality: int | None = None) -> Picture:
    """Convert the engine's base64 picture; a PNG is not re-encoded as PNG.

    Raises:
        DeliveryFailed: it is not a whole picture, or too large for the format.
    """
    try:
        data = pybase64.b64decode(image, validate=True)
    except ValueError:
        raise DeliveryFailed("the engine's picture is not base64.", hint=_HINT) from None
    if data.startswith(_PNG):
        if not _is_whole(data):
            problem = f"the engine's PNG of {len(data)} bytes is damaged."
            raise DeliveryFailed(problem, hint="Send the job again.")
        if format_ == "png":
            return Picture(image, "png")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _encoded(opened, format_, quality)
    except UnidentifiedImageError:  # its text has only the address of a buffer
        problem = "the engine did not return a picture."
    except BAD_FILE as error:
        problem = f"the picture cannot be converted to {format_}: {error}."
    # Not in the `except`: no memory for the size that a file claims says nothing about the machine.
    raise DeliveryFailed(problem, hint=_HINT)


def size_of(image: str) -> tuple[int, int] | None:
    """Width and height of a base64 picture, from its header; None of what is no picture."""
    try:
        header = pybase64.b64decode(image[:_HEADER_TEXT], validate=True)
        if header.startswith(_PNG) and len(header) == _HEADER_BYTES:
            width, height = struct.unpack_from(">II", header, _SIZE_AT)
            return width, height
        with Image.open(io.BytesIO(pybase64.b64decode(image, validate=True))) as opened:
            return opened.size
    except BAD_FILE:
        return None


def _is_whole(png: bytes) -> bool:
    """Whether it has pixels, and each of its chunks the checksum that stands behind it."""
    data, at, has_pixels = memoryview(png), len(_PNG), False
    while at + _EMPTY_CHUNK <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return has_pixels
        has_pixels = has_pixels or kind == b"IDAT"
        at = end + 4
    return False


def thumbnail(image: str, longest: int = 256) -> str | None:
    """A base64 picture as a small base64 JPEG; None if it cannot be read.

    Args:
        image: the picture.
        longest: the longer side in pixels, at most.
    """
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(pybase64.b64decode(image))) as opened:
            small = opened.convert("RGB")
        small.thumbnail((longest, longest))
        small.save(file, "JPEG", quality=70)
    except BAD_FILE:
        return None
    return pybase64.b64encode_as_string(file.getvalue())


def _encoded(image: Image.Image, format_: ImageFormat, quality: int | None) -> Picture:
    text = infotext_of(image)
    if format_ == "png":
        return Picture(as_png(image, {PARAMETERS: text} if text else {}), "png")
    file = io.BytesIO()
    quality = DEFAULT_QUALITY if quality is None else quality
    exif = _exif(text)
    fits = format_ != "jpeg" or len(exif) <= _LARGEST_EXIF
    colours = image if image.mode == "RGB" else image.convert("RGB")
    colours.save(file, format_.upper(), quality=quality, exif=exif if fits else b"")
    return Picture(file.getvalue(), format_, quality, complete=fits)


def _exif(text: str | None) -> bytes:
    """An EXIF block with only a UserComment.

    Pillow would give the field the type BYTE, which piexif, A1111's reader, does not accept.
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
