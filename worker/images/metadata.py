"""The texts in a picture's file, as A1111's tab "PNG Info" reads them.

Runs in the process that decodes pictures: each text comes from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ExifTags, Image

PARAMETERS = "parameters"
_MAX_NAMES = 64
_LONGEST_NAME = 80  # characters; a keyword of a PNG has at most 79
_ENCODING = 8  # bytes at the start of an EXIF UserComment that name its encoding

# What Pillow reports of the pixels and of the container, not texts about the picture.
_NOT_TEXTS = {
    *("adobe", "adobe_transform", "aspect", "background", "bbox", "blend", "chromaticity"),
    *("compression", "default_image", "disposal", "dpi", "duration", "exif", "extension"),
    *("gamma", "icc_profile", "interlace", "jfif", "jfif_density", "jfif_unit", "jfif_version"),
    *("loop", "mp", "mpoffset", "photoshop", "progression", "progressive", "resolution", "srgb"),
    *("timestamp", "transparency", "version"),
}


@dataclass(frozen=True)
class Exif:
    """What matters of a picture's EXIF.

    Attributes:
        orientation: 1 to 8; 1 is upright.
        comment: the field UserComment.
    """

    orientation: int = 1
    comment: object = None


def read_exif(image: Image.Image) -> Exif:
    """The EXIF of a picture; nothing, if it is damaged: the pixels may be good."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        if not isinstance(orientation, int):
            orientation = 1
        return Exif(orientation, exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - for damaged EXIF, Pillow raises anything
        return Exif()


class Texts:
    """The texts of a picture, up to a number of bytes.

    Attributes:
        infotext: A1111's generation parameters; None if there are none, or they are too long.
        items: name -> text of the others.
        left_out: names of those that were too long.
    """

    def __init__(self, image: Image.Image, exif: Exif, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self.items: dict[str, str] = {}
        self.left_out: list[str] = []
        infotext = (
            _of_user_comment(exif.comment) or _text(image.info.get(PARAMETERS)) or _comment(image)
        )
        self.infotext = self._kept(PARAMETERS, infotext) if infotext else None
        for name, text in _texts(image):
            if (kept := self._kept(name, text)) is not None:
                self.items[name] = kept

    def _kept(self, name: str, text: str) -> str | None:
        size = len(text.encode("utf-8", "replace"))
        if size > self._bytes_left or len(self.items) >= _MAX_NAMES:
            self.left_out += [name] if len(self.left_out) < _MAX_NAMES else []
            return None
        self._bytes_left -= size
        return text


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    for name, value in image.info.items():
        text = _text(value)
        if isinstance(name, str) and name not in {PARAMETERS, *_NOT_TEXTS} and text:
            yield _printable(name[:_LONGEST_NAME]), text


def _comment(image: Image.Image) -> str | None:
    """The comment of a GIF or JPEG. In a PNG it is a text like any other."""
    comment = image.info.get("comment")
    return _text(comment) if isinstance(comment, bytes) else None


def _of_user_comment(value: object) -> str | None:
    if not isinstance(value, bytes):
        return _text(value)
    encoding, text = value[:_ENCODING].rstrip(b"\0 "), value[_ENCODING:]
    if encoding == b"UNICODE":
        # EXIF does not say which byte comes first. A1111 writes the high one first; the prompts of
        # other programs begin with a letter whose high byte is 0.
        little = text[1:2] == b"\0" and text[:1] != b"\0"
        return _printable(text.decode("utf-16-le" if little else "utf-16-be", "replace"))
    return _text(text if encoding in {b"ASCII", b"JIS", b""} else value)


def _text(value: object) -> str | None:
    """A text or number as text; None for everything else."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        return _printable(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _printable(text: str) -> str:
    """Without the NUL that ends a text of C, and without halves of surrogate pairs."""
    return text.rstrip("\0").replace("\0", "").encode("utf-8", "replace").decode()
