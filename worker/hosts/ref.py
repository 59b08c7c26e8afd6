"""What all references to models share, and the rules for reading them from text. Pure.

A URL's query and userinfo may be secrets: no message, no `repr` and no `shown` contains them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple
from urllib.parse import parse_qsl

from worker.errors import InvalidInput

_MAX_TEXT, _MAX_SHOWN = 4096, 80
_MAX_ID, _MAX_PORT = 2**63 - 1, 65_535

# Control characters, and characters that could forge a line of a log, reverse its direction, or
# are half a surrogate pair.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffd]")
_URL = re.compile(r"(?ai)(https?://)([^/?#]*)([^?#]*)((?:\?[^#]+)?)\??(?:#.*)?")
_NETLOC = re.compile(r"(?:[a-z0-9_][a-z0-9._-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_SITE = re.compile(r"(?ai)(?:https?://)?([a-z0-9.-]+?)\.?(?::(?:80|443))?(?=[/?#]|\Z)")
_REPO_AT = re.compile(r"(?a)(?:hf://)?[\w.-]+/[\w.-]+@")


class ModelRef:
    """A reference to a model. `str` of it is its canonical form, from which it can be read again.

    Attributes:
        needs_host: whether a host must be registered that resolves references of this class.
    """

    needs_host: ClassVar[bool] = True

    @property
    def is_moving(self) -> bool:
        """Whether the same reference can mean another file at a later time."""
        return False

    @property
    def has_secret(self) -> bool:
        """Whether the canonical form is, or may be, a secret: then it is never stored or shown."""
        return False

    @property
    def shown(self) -> str:
        """For people and logs: the canonical form without its secrets."""
        return str(self)

    @property
    def key(self) -> str:
        """SHA-256 of the canonical form: a file name for caches."""
        return hashlib.sha256(str(self).encode()).hexdigest()


@dataclass(frozen=True)
class Sha256(ModelRef):
    """The file with this SHA-256, at any host: 64 lower-case hex digits."""

    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise refused(self.digest, "is not a SHA-256 of 64 hex digits")

    def __str__(self) -> str:
        return f"sha256:{self.digest}"


class SiteUrl(NamedTuple):
    """A URL on a site of a registered host.

    Attributes:
        text: as the job gave it, for messages.
        path: starts with a slash, or is empty.
        query: decoded pairs of name and value.
    """

    text: str
    path: str
    query: list[tuple[str, str]]

    def refused(self, problem: str) -> InvalidInput:
        """The error for a URL that names no model."""
        return refused(self.text, problem)


def site_of(text: str) -> tuple[str, str] | None:
    """Domain in lower case, and the text with an `https://`; None if no host name begins it.

    Browsers show URLs without the scheme, so it may be missing.
    """
    match = _SITE.match(text)
    return (match[1].lower(), f"https://{text[match.start(1) :]}") if match else None


def site_url(text: str, url: str) -> SiteUrl:
    """Split the URL that `site_of` returned; raises InvalidInput if it is malformed.

    A URL that was copied from the source of a page has `&amp;` in the place of `&`.
    """
    _, path, query = split_url(url)
    return SiteUrl(text, path, parse_qsl(query.replace("&amp;", "&")))


def clean(text: object) -> str:
    """The text without surrounding blanks.

    Raises:
        InvalidInput: not text, empty, too long, or with characters that no reference has.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"the model is not text but {type(text).__name__}.")
    check_length(text)
    text = text.strip()
    if not text or _CONTROL.search(text):
        raise refused(text, "is empty, or contains a control character or half a character")
    return text


def split_url(url: str) -> tuple[str, str, str]:
    """The URL without fragment and with its host in lower case; its path; its query."""
    match = _URL.fullmatch(url)
    if match is None or re.search(r"\s", url) or _CONTROL.search(url):
        raise refused(url, "is not a URL, or contains a blank (write %20)")
    if "@" in match[2]:
        raise refused(url, "is a URL with a user or password")
    netloc = _NETLOC.fullmatch(match[2].lower())
    if netloc is None or not 1 <= int(netloc[1] or 443) <= _MAX_PORT:
        raise refused(url, "is a URL without a valid host and port")
    return match[1].lower() + netloc[0] + match[3] + match[4], match[3], match[4][1:]


def check_id(number: int) -> None:
    """Refuse what cannot be an id of a host's database."""
    # True is an int, but not an id.
    if type(number) is not int or not 1 <= number <= _MAX_ID:
        raise refused(str(number), f"is not an id from 1 to {_MAX_ID}")


def check_length(text: str) -> None:
    """Refuse texts over 4096 characters."""
    if len(text) > _MAX_TEXT:
        raise refused(text, f"is longer than {_MAX_TEXT} characters")


def is_path(text: str) -> bool:
    """Whether the text is a relative path that stays below its start."""
    is_plain = "\\" not in text and not _CONTROL.search(text)
    return is_plain and not {"", ".", ".."} & set(text.split("/"))


def refused(text: str, problem: str) -> InvalidInput:
    """The error for a text that is not a reference; the message contains no secrets of it."""
    return InvalidInput(f"the model {_given(text)} {problem}.")


def _given(text: str) -> str:
    """The text as a message shows it: short, without the secret query and userinfo of a URL."""
    head, *tail = re.split("[?#]", text, maxsplit=1)
    if "@" in text and "/" in text and not _REPO_AT.match(text):
        # An @ behind the ? can be the end of a password that has a ?, or part of a signature.
        head = "..." if "@" in "".join(tail) else "..." + head.rpartition("@")[2]
    return repr(head if len(head) <= _MAX_SHOWN else f"{head[: _MAX_SHOWN - 3]}...")
