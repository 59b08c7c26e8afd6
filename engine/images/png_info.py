"""What a picture file says about itself: its texts, and A1111's generation parameters in it."""

import json
import logging
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)

# what A1111 does not show: it is about the file, not about the picture
HIDDEN = frozenset(
    {
        *("jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background"),
        *("timestamp", "duration", "progressive", "progression", "icc_profile", "chromaticity"),
        "photoshop",
    }
)
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
CHARSET_BYTES = 8  # before the text of EXIF's UserComment
CHARSETS = {
    b"ASCII\0\0\0": "ascii",
    b"JIS\0\0\0\0\0": "shift_jis",
    b"UNICODE\0": "utf_16_be",
    b"\0\0\0\0\0\0\0\0": "latin_1",
}
NOVEL_AI_SAMPLER = "Euler a"


def texts_of(picture: Image.Image, sampler_names: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The generation parameters ("" without any), and the other entries of the file.

    `sampler_names` translates the samplers of NovelAI's pictures: {its name: A1111's}.
    """
    items: dict[str, Any] = {str(name): value for name, value in picture.info.items()}
    found = items.pop("parameters", None)
    if "exif" in items:
        found = _user_comment(picture) or found
    elif isinstance(items.get("comment"), bytes):  # GIF
        found = items["comment"].decode(errors="ignore")
    items = {name: value for name, value in items.items() if name not in HIDDEN}
    if items.get("Software") == "NovelAI":
        found = _novel_ai(items, picture.size, sampler_names) or found
    return found if isinstance(found, str) else "", items


def _user_comment(picture: Image.Image) -> str:
    try:
        content = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    except (OSError, ValueError, TypeError, LookupError, SyntaxError) as error:
        log.warning("the EXIF of a picture cannot be read: %s", error)
        return ""
    if isinstance(content, str):
        return content
    charset = CHARSETS.get(content[:CHARSET_BYTES])
    if charset is None:
        return bytes(content).decode(errors="ignore")
    return bytes(content[CHARSET_BYTES:]).decode(charset, errors="replace")


def _novel_ai(items: dict[str, Any], size: tuple[int, int], samplers: dict[str, str]) -> str:
    """NovelAI's JSON as generation parameters; "" if it is not valid."""
    try:
        made = json.loads(items["Comment"])
        sampler = samplers.get(made["sampler"], NOVEL_AI_SAMPLER)
        return (
            f"{items['Description']}\nNegative prompt: {made['uc']}\nSteps: {made['steps']}, "
            f"Sampler: {sampler}, CFG scale: {made['scale']}, Seed: {made['seed']}, "
            f"Size: {size[0]}x{size[1]}, Clip skip: 2, ENSD: 31337"
        )
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        log.warning("the parameters of a picture of NovelAI cannot be read: %s", error)
        return ""


def writable(value: Any) -> Any:  # noqa: ANN401 - of any file
    """A value of a picture file as JSON can hold it: texts, numbers and lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, list | tuple):
        return [writable(one) for one in value]
    return str(value)
