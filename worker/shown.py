"""Shows a text from outside in a message: short, on one line, and without secrets. Pure.

Such a text may be huge, deeply nested, or written to look like lines of a log. It is cut before
anything else is done with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

_MAX_TEXT = 60  # characters of a value: a line's worth
_CUT = 400  # characters of a value that are looked at
_MAX_ITEMS, _MAX_LEVELS = 6, 3
_LONGEST_NAME = 80
_LONGEST_URL = 4096

# The parts of a URL before the host and behind the path may be secret; a password may have a slash
# in it, as it was copied. They meet at most `_CUT` characters.
_LOGIN = re.compile(r"(?<=://)[^\s'\"]*@")
_UNFINISHED = re.compile(r"(?<=://)[^/\s'\"]*\Z")
_QUERY = re.compile(r"([?#])([^\s'\"]+)")

# The words of pydantic -> those of our messages.
_PLAIN_WORDS = {
    "Input should": "must",
    "String should": "must",
    "List should": "must",
    " after validation": "",
    "must be a valid boolean": "must be true or false",
    "must be a valid string": "must be a text",
    "must be a valid number": "must be a number",
    "must be a valid integer": "must be a whole number",
    "must be a valid list": "must be a list",
    "must be a valid dictionary": "must be an object",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", unable to parse string as a number": "",
    ", unable to interpret input": "",
    ", unable to parse string as an integer": "",
}


def shown(value: object, longest: int = _MAX_TEXT) -> str:
    """A caller's value as a message shows it: short, and without the secrets of a URL."""
    text = _short(value, _MAX_LEVELS)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _short(value: object, levels: int) -> str:
    if isinstance(value, str):
        return repr(_redacted(value[:_CUT], is_cut=len(value) > _CUT))
    if isinstance(value, bytes):
        return repr(value[:_CUT])
    if isinstance(value, Mapping | list | tuple):
        return _short_container(value, levels)
    return _redacted(repr(value), is_cut=False)


def _redacted(text: str, *, is_cut: bool) -> str:
    text = _LOGIN.sub("...@", text)
    if is_cut:  # the `@` or the `=` may be behind the cut
        text = _UNFINISHED.sub("...", text)
    return _QUERY.sub(
        lambda found: f"{found[1]}..." if is_cut or "=" in found[2] else found[0], text
    )


def without_secrets(value: object) -> object:
    """A JSON value without the parts of its URLs that may be secret; a prompt stays whole."""
    if isinstance(value, str):
        head = value[:_LONGEST_URL].strip()
        is_url = "://" in head[:_LONGEST_NAME] or not any(map(str.isspace, head))
        return _redacted(head, is_cut=len(value) > _LONGEST_URL) if is_url else value
    if isinstance(value, Mapping):
        return {name: without_secrets(one) for name, one in value.items()}
    return [without_secrets(one) for one in value] if isinstance(value, list) else value


def _short_container(value: Mapping[object, object] | Sequence[object], levels: int) -> str:
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    if not levels and value:
        return f"{opening}...{closing}"
    first = list(islice(value, _MAX_ITEMS))
    parts = [_short(one, levels - 1) for one in first]
    if isinstance(value, Mapping):
        parts = [
            f"{part}: {_short(value[one], levels - 1)}"
            for one, part in zip(first, parts, strict=True)
        ]
    parts += ["..."] if len(value) > _MAX_ITEMS else []
    return f"{opening}{', '.join(parts)}{closing}"


def shown_name(name: str) -> str:
    """A caller's key on one line; quoted if it has characters that could forge a line."""
    text = _redacted(name[:_LONGEST_NAME], is_cut=len(name) > _LONGEST_NAME)
    return text if text.isprintable() else repr(text)


def shown_size(size: tuple[int, int]) -> str:
    """Width and height in pixels, as `512 x 768`."""
    return f"{size[0]} x {size[1]}"


def in_plain_words(message: str) -> str:
    """What pydantic says of a value, in the words of the other messages."""
    message = message.removeprefix("Value error, ")
    for theirs, ours in _PLAIN_WORDS.items():
        message = message.replace(theirs, ours)
    return message
