"""Decodes the base64 of a picture. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from worker.errors import InvalidInput
from worker.job.image_fields import FORMS, payload_start

_URL_SAFE = str.maketrans("-_", "+/")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
_HINT = f"Send the whole file as {FORMS}."


def decoded(text: str) -> bytes:
    """The bytes of base64 or of a data URI; line breaks and missing padding are accepted.

    Raises:
        InvalidInput: it is not base64, or it ends in the middle of a byte.
    """
    body = "".join(text[payload_start(text) :].split()).rstrip("=")
    if "-" in body or "_" in body:
        body = body.translate(_URL_SAFE)
    if len(body) % 4 == 1 and not _FOREIGN.search(body):
        raise InvalidInput("the base64 is incomplete: its end is missing.", hint=_HINT)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):  # ValueError: a character beyond ASCII
        raise InvalidInput("the text is not base64.", hint=_HINT) from None
    if not data:
        raise InvalidInput("the base64 is empty.", hint=_HINT)
    return data
