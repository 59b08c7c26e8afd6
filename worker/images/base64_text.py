"""Decodes the base64 of a picture. Pure."""

from __future__ import annotations

import binascii
import re
import string

import pybase64

from worker.errors import InvalidInput
from worker.job.image_fields import FORMS, payload_start

_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")
_HINT = f"Send the whole file as {FORMS}."


def decoded(text: str) -> bytes:
    """The bytes of base64 or of a data URI; line breaks and missing padding are accepted.

    Raises:
        InvalidInput: it is not base64, or it ends in the middle of a byte.
    """
    # As bytes: a list of the words between line breaks would take 20 times the text's memory.
    ascii_text = text[payload_start(text) :].encode("ascii", "replace")  # "?" is not base64
    body = ascii_text.translate(_URL_SAFE, string.whitespace.encode()).rstrip(b"=")
    if len(body) % 4 == 1 and not _FOREIGN.search(body):
        raise InvalidInput("the base64 is incomplete: its end is missing.", hint=_HINT)
    try:
        data = pybase64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except binascii.Error:
        raise InvalidInput("the text is not base64.", hint=_HINT) from None
    if not data:
        raise InvalidInput("the base64 is empty.", hint=_HINT)
    return data


def decoded_size(text: str) -> int:
    """The number of bytes that base64 stands for."""
    return len(text) // 4 * 3 - text.count("=", -2)
