"""The header of a safetensors file, read from its first bytes and checked. Pure.

The header contains the names and shapes of all tensors and determines the size of the whole file.
So a web page, a pickle or a truncated file is recognised before the rest is downloaded or opened.
The checks here limit the memory and time that a hostile header can take; the safetensors library
parses the file afterwards (`formats.model_file.check_with_safetensors`).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.errors import ModelFileInvalid, ModelNotSupported, ModelUnsafe

_LENGTH_BYTES = 8
# Real headers have up to 7,000 tensors and, with the tags of a training, some megabytes.
_MAX_HEADER = 16_000_000
_MAX_TENSORS = 30_000
_MAX_VALUES = 1_000_000  # texts, lists and objects, which a hostile header has by the million
_MAX_NAME = 1_000  # characters
_MAX_AXES = 16
_EXCERPT = 60  # characters of a file's text that a message quotes
_LOOKED_AT = 4096  # bytes of a text that are searched for a title: more would take minutes
_OVERFLOW = 1 << 64  # safetensors counts in 64 bits
_TITLE = re.compile(rb"<title[^<>]*>([^<]*)</title>", re.IGNORECASE)

# Bits of one element. These are the types that safetensors 0.4.2 and torch 2.1.2 know, which A1111
# v1.9.3 has; newer ones (F4, F8_E8M0, C64, U16, ...) make it fail.
_BITS = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 8)
    | dict.fromkeys(("I16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "F32"), 32)
    | dict.fromkeys(("I64", "F64"), 64)
)


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype by its safetensors name (`F16`), shape, and position of its data.

    Attributes:
        begin: offset of the data in bytes, counted from the end of the header; not compared.
        end: offset of the end of the data, likewise.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Header:
    """A safetensors header.

    Attributes:
        tensors: by name, in the header's order.
        metadata: the free text in `__metadata__`.
        data_start: bytes before the data of the first tensor.
        size: bytes of the whole file.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def refuse_foreign(start: bytes) -> None:
    """Reject other formats by the first bytes: 5 for most, 100 for the text of a web page.

    Raises:
        ModelFileInvalid: the file is empty, a web page, JSON, or another text.
        ModelUnsafe: it is a pickle.
        ModelNotSupported: it is GGUF.
    """
    if not start:
        raise ModelFileInvalid("the file is empty.")
    if start[:4] == b"GGUF":
        raise ModelNotSupported("the file is GGUF, which A1111 v1.9.3 cannot load.", format="GGUF")
    if _is_pickle(start):
        raise ModelUnsafe("the file is a PyTorch pickle (.ckpt, .pt), which can run any code.")
    if not _may_be_safetensors(start) and b"\0" not in start[:64]:
        _refuse_text(start)


def check_pickle(start: bytes) -> None:
    """Reject a file that does not begin like PyTorch's: a zip archive or a bare pickle.

    Raises:
        ModelFileInvalid, ModelNotSupported: see `refuse_foreign`; or the format is unknown.
    """
    if not _is_pickle(start):
        refuse_foreign(start)
        raise ModelFileInvalid("the file has the suffix of a PyTorch pickle, but is not one.")


def _is_pickle(start: bytes) -> bool:
    if start[:4] == b"PK\x03\x04":
        return True
    has_protocol = start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05"
    return has_protocol and not _may_be_safetensors(start)


def _may_be_safetensors(start: bytes) -> bool:
    # The length can begin like a pickle or like `<`, but its upper four bytes are always zero.
    return not any(start[4:8]) and start[8:9].strip() in {b"", b"{"}


def _refuse_text(start: bytes) -> None:
    body = start[:_LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip()
    kinds = {b"<": "a web page", b"{": "a JSON text", b"[": "a JSON text"}
    kind = kinds.get(body[:1], "a text" if body[:64].isascii() else None)
    if kind is None:
        return
    title = _TITLE.search(body) if kind == "a web page" else None
    text = title[1].strip() if title else b""
    words = (text or body[: 4 * _EXCERPT]).decode("utf-8", "replace")
    excerpt = " ".join(html.unescape(words).split())[:_EXCERPT]
    raise ModelFileInvalid(f"the file is {kind}, not a model: {excerpt!r}.", excerpt=excerpt)


def header_length(start: bytes) -> int | None:
    """Bytes of the length field and the header together; None if `start` is shorter than 8.

    Raises:
        ModelFileInvalid, ModelUnsafe, ModelNotSupported: see `refuse_foreign`; or the header
            is longer than 16 MB.
    """
    refuse_foreign(start)
    if len(start) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > _MAX_HEADER:
        raise ModelFileInvalid(
            f"the file is not safetensors: a header of {length} bytes is too long."
        )
    return _LENGTH_BYTES + length


def parse_header(start: bytes) -> Header:
    """The header of a file that begins with `start`, which need not contain any data.

    The rules are those of safetensors 0.4.2; duplicate names and sizes beyond any real model's are
    rejected, too.

    Raises:
        ModelFileInvalid: the header is truncated or breaks a rule; or see `refuse_foreign`.
        ModelUnsafe, ModelNotSupported: see `refuse_foreign`.
    """
    end = header_length(start)
    if end is None or len(start) < end:
        raise ModelFileInvalid("the file ends inside its header.", bytes=len(start))
    entries = _document(start[_LENGTH_BYTES:end])
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    _require(isinstance(metadata, dict), "its metadata is not an object")
    _require(
        all(isinstance(v, str) for v in metadata.values()), "a value of its metadata is not text"
    )
    _require(len(entries) <= _MAX_TENSORS, f"it has {len(entries)} tensors")
    _require(
        all(_is_text(text) for text in (*entries, *metadata, *metadata.values())),
        "a text in it is not Unicode",
    )
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    return Header(tensors, metadata, end, end + _contiguous(tensors))


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ModelFileInvalid(f"the file's header is damaged: {otherwise}.")


def _document(text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        _require(len(document) == len(pairs), "it has duplicate names")
        return document

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def number(digits: str) -> int | float:
        return -0.0 if digits == "-0" else int(digits)  # safetensors reads -0 as a float

    values = text.count(b'"') // 2 + text.count(b"[") + text.count(b"{")
    _require(values <= _MAX_VALUES, f"it has {values} values")
    hook = number if b"-0" in text else None
    try:
        document = json.loads(
            text.decode(), object_pairs_hook=once, parse_constant=refuse, parse_int=hook
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileInvalid("the file's header is damaged: it is not JSON.") from error
    _require(isinstance(document, dict), "it is not an object")
    return dict(document)


def _is_text(text: str) -> bool:
    """Whether it has no lone surrogate, which JSON can write and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)


def _tensor(name: str, entry: object) -> Tensor:
    short = name[:_EXCERPT]
    _require(len(name) <= _MAX_NAME, f"a name has {len(name)} characters ({short!r})")
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            raise ModelFileInvalid(f"the file's header is damaged: {short!r} is not a tensor.")
    _require(len(shape) <= _MAX_AXES, f"{short!r} has {len(shape)} axes")
    numbers = all(type(n) is int and 0 <= n < _OVERFLOW for n in (*shape, begin, end))
    _require(numbers and dtype in _BITS, f"{short!r} has an invalid dtype, shape or offset")
    bits = 1
    for factor in (*shape, _BITS[dtype]):
        bits *= factor
        _require(bits < _OVERFLOW, f"the shape of {short!r} is too large")
    _require(bits == 8 * (end - begin), f"the size of {short!r} does not match its shape")
    return Tensor(dtype, tuple(shape), begin, end)


def _contiguous(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all data, which must be contiguous."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        _require(
            tensor.begin == position,
            f"{name[:_EXCERPT]!r} does not begin where the previous tensor ends",
        )
        position = tensor.end
    return position
