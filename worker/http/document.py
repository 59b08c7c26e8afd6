"""A host's answer once it has been read. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")


@dataclass(frozen=True)
class Document:
    """A complete answer: metadata, or the text of an error."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The parsed body; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def strong(etag: str | None) -> str | None:
    """The ETag if it is a strong one: two files with the same strong ETag have the same bytes."""
    return etag if etag and not etag.startswith("W/") else None


def error_code(body: bytes) -> str | None:
    """How an S3-compatible service names the reason of an error; None if it does not."""
    found = _CODE.search(body)
    return found[1].decode() if found else None
