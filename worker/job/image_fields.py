"""The field with which a job brings a picture. Part of the schema in `worker.job.request`.

Here only the form of the text is checked, which is cheap; `worker.images` fetches and decodes.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

# RunPod accepts requests of 10 MB for /run and 20 MB for /runsync: more text cannot arrive there.
MAX_TEXT = 20_000_000  # characters
MAX_URL = 4096  # characters
_LOOKED_AT = 128  # characters whose form is checked

_URL = re.compile(r"(?i)https?://[^\s/]")
_DATA_URI = re.compile(r"(?i)data:image/[a-z0-9.+-]{1,40}(?:;[a-z0-9.=+-]{1,40}){0,2};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
FORMS = 'base64, a data URI ("data:image/png;base64,...") or an https URL'


def is_url(text: str) -> bool:
    """Whether the text is a URL to fetch; otherwise it has the picture in base64."""
    return _URL.match(text) is not None


def payload_start(text: str) -> int:
    """Where the base64 begins: behind the prefix of a data URI, if there is one."""
    found = _DATA_URI.match(text)
    return found.end() if found else 0


def check_form(text: str) -> str:
    """Check the length and the first characters of a picture's text.

    Raises:
        ValueError: it is neither base64, nor a data URI with base64, nor a URL, or it is too long.
    """
    if is_url(text):
        if len(text) > MAX_URL:
            raise ValueError(f"is a URL of {len(text):,} characters; at most {MAX_URL:,} work")
        return text
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"has {len(text) / 1e6:.0f} MB of base64, but RunPod accepts at most 20 MB for a whole"
            " request; send an https URL of the picture instead"
        )
    start = payload_start(text)
    if text[:5].lower() == "data:" and not start:
        raise ValueError('is a data URI, but not of the form "data:image/png;base64,..."')
    if not _BASE64.fullmatch(text[start : start + _LOOKED_AT]):
        raise ValueError(f"is not a picture; send {FORMS}")
    return text


ImageText = Annotated[
    str,
    StringConstraints(min_length=1, strip_whitespace=True),
    AfterValidator(check_form),
    Field(
        description=f"A picture: {FORMS}. The worker fetches URLs; A1111 never does. Pictures that"
        " do not fit into RunPod's request (10 MB for /run, 20 MB for /runsync) need a URL."
    ),
]
