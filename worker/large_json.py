"""JSON with pictures in it: megabytes of base64 that need not be scanned as JSON. Pure.

Python's `json` looks at each character, to find escapes that base64 does not have. Here the long
texts are cut out, the small rest is parsed or written, and the texts are put back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

LONG = 1 << 16  # characters; a shorter text is left to `json`

# Two texts of a JSON document have a comma or a colon between them; a backslash begins an escape.
_NOT_IN_CUT = (b",", b":", b"\\")
# What a text in JSON has as it is. Other characters need an escape, or have more than one byte.
_PLAIN = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))

Json = Any


def parse(document: bytes) -> Json:
    """Parse JSON; base64 of at least `LONG` characters is copied, and not scanned.

    So a control character in such a text, which JSON forbids, stays in it: the caller checks that
    a picture is base64. A text with a comma, a colon or an escape is scanned, as by `json.loads`.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """
    view, mark = memoryview(document), secrets.token_hex(16)  # no text has it by chance
    places: dict[str, tuple[int, int]] = {}
    rest, at = bytearray(), 0
    for begin, end in _long_texts(document):
        name = f"{mark}{len(places)}"
        places[name] = begin, end
        rest += view[at:begin]
        rest += name.encode()
        at = end

    def put_back(text: str) -> str:
        place = places.get(text)
        # As `json.loads` decodes bytes.
        return str(view[slice(*place)], "utf-8", "surrogatepass") if place else text

    try:
        if not places:
            return json.loads(document)
        rest += view[at:]
        return _with_texts(json.loads(rest), put_back, put_back)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@dataclass(frozen=True)
class Document:
    """JSON as it is sent.

    Attributes:
        pieces: in order; a `str` has only ASCII, and is part of the value that was written.
    """

    pieces: tuple[bytes | str, ...]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(map(len, self.pieces))

    def parts(self, longest: int) -> Iterator[bytes]:
        """The bytes, in parts of at most `longest`: the whole is never copied."""
        for piece in self.pieces:
            for at in range(0, len(piece), longest):
                part = piece[at : at + longest]
                yield part.encode() if isinstance(part, str) else part


def document_of(value: Json) -> Document:
    """Write JSON in UTF-8.

    Raises:
        TypeError, ValueError, RecursionError: the value is not JSON; NaN is not, either.
    """
    mark, texts = secrets.token_hex(16), list[str]()

    def cut(text: str) -> str:
        if len(text) < LONG or not _is_plain(text):
            return text
        texts.append(text)
        return mark

    rest = json.dumps(_with_texts(value, cut), ensure_ascii=False, allow_nan=False).encode()
    first, *others = rest.split(mark.encode())
    pieces: list[bytes | str] = [first]
    for text, piece in zip(texts, others, strict=True):
        pieces += [text, piece]
    return Document(tuple(pieces))


def _long_texts(document: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the long texts without commas, colons and escapes, in their order.

    Only one place in half of `LONG` is looked at: each long text is at one of them.
    """
    before, at = 0, LONG // 2
    if b"\0" in document[:4]:
        return  # UTF-16 or UTF-32, which `json` reads as well
    while (end := document.find(b'"', at)) >= 0:
        begin = document.rfind(b'"', before, at) + 1
        is_long = begin > before and end - begin >= LONG
        is_escaped = document[begin - 2 : begin - 1] == b"\\"  # the text has begun before
        cuts = (document.find(one, begin, end) for one in _NOT_IN_CUT)
        if is_long and not is_escaped and all(cut < 0 for cut in cuts):
            yield begin, end
        before, at = end, end + LONG // 2


def _is_plain(text: str) -> bool:
    return text.isascii() and not text.encode().translate(None, _PLAIN)


def _as_it_is(key: str) -> str:
    """A key that stays: two long ones of an object must not become the same."""
    return key


def _with_texts(
    value: Json, change: Callable[[str], str], change_key: Callable[[str], str] = _as_it_is
) -> Json:
    """The value with each of its texts and keys changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change_key(key) if isinstance(key, str) else key: _with_texts(item, change, change_key)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_texts(item, change, change_key) for item in value]
    return value
